"""Points that a model reads in the place of its embedding output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kdcache.errors import ModelError
from kdcache.models.recording import name_of, require_plain, unwrapped
from kdcache.plans.batch import Batch

POINTS = "points"
"""Name in a batch of what is read in the place of the embedding output, [B, L, H]."""


class _Instead:
    """Puts points in the place of what the first block reads, where there are tokens."""

    def __init__(self, points: torch.Tensor, mask: torch.Tensor) -> None:
        self.points, self.mask, self.done = points, mask.unsqueeze(-1), False

    def __call__(self, _block: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if self.done:
            return None  # ALBERT runs one block again and again
        self.done = True
        name = next(iter(given), "")
        own = args[0] if args else given[name]
        read = torch.where(self.mask, self.points.to(own.dtype), own)
        return ((read, *args[1:]), given) if args else (args, {**given, name: read})


@contextmanager
def at_points(model: Any, batch: Batch) -> Iterator[None]:
    """Let a model read the `points` of a batch, if it has some.

    Raises ModelError for a model without a list of blocks, or that did not run the first of them.
    """
    if POINTS not in batch:
        yield
        return
    require_plain(model, "a point")
    modules = unwrapped(model).modules()
    blocks = next((m for m in modules if isinstance(m, nn.ModuleList) and len(m)), None)
    if blocks is None:
        raise ModelError(
            f"{name_of(model)} has no list of blocks, before which points would stand in the place "
            "of its embedding output: choose a model of transformers' that has one"
        )
    instead = _Instead(batch[POINTS], batch.mask)
    handle = blocks[0].register_forward_pre_hook(instead, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if not instead.done:
        raise ModelError(f"{name_of(model)} did not run its first block, which was to read points")
