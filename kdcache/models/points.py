"""Points that a model reads in the place of its embedding output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kdcache.errors import ModelError
from kdcache.models.first_block import first_read
from kdcache.models.recording import name_of, require_plain, unwrapped
from kdcache.plans.batch import Batch

POINTS = "points"
"""Name in a batch of what is read in the place of the embedding output, [B, L, H]."""


@contextmanager
def at_points(model: Any, batch: Batch) -> Iterator[None]:
    """Let a model read the `points` of a batch, if it has some.

    Raises ModelError for a model without a list of blocks, or that did not run the first of them.
    """
    if POINTS not in batch:
        yield
        return
    require_plain(model, "a point")
    points, mask = batch[POINTS], batch.mask.unsqueeze(-1)
    without = (
        ", before which points would stand in the place of its embedding output: choose a model of "
        "transformers' that has one"
    )

    def instead(own: torch.Tensor) -> torch.Tensor:
        if own.shape != points.shape:
            raise ModelError(
                f"the first block of {name_of(model)} reads {tuple(own.shape)}, and the points are "
                f"{tuple(points.shape)}, documents by tokens by width: choose a model whose blocks "
                "read that, such as BERT"
            )
        return torch.where(mask, points.to(own.dtype), own)

    with first_read(unwrapped(model), instead, without=without) as seen:
        yield
    if seen.states is None:
        raise ModelError(f"{name_of(model)} did not run its first block, which was to read points")
