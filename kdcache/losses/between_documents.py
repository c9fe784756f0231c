"""Vectors of the documents of a batch, and what every two of them count for."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, check_number, even, safe
from kdcache.losses.layer_maps import LayerMap
from kdcache.losses.layer_matches import learns, pairs_or_last
from kdcache.signals import ModelSizes, Tap

VECTORS = ("cls", "mean", "pooled")
"""Of each document: its first token's hidden state, the mean of all, what a classifier reads."""


class OfVectors(Protocol):
    """A loss that compares vectors of documents."""

    @property
    def kind(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def vectors(self) -> str: ...
    @property
    def layer_map(self) -> LayerMap: ...
    @property
    def signal(self) -> str: ...


def check_vectors(loss: OfVectors) -> None:
    """Raise ConfigError for a weight or vectors that cannot be."""
    check_number(f"weight of {loss.kind}", loss.weight)
    one_of(f"vectors of {loss.kind}", loss.vectors, VECTORS)


def vector_matches(
    loss: OfVectors, student: ModelSizes, teacher: ModelSizes, *, projection: str = ""
) -> tuple[Match, ...]:
    """The vectors of documents; those of layers at every pair of its map.

    They are of any widths; or a map is learned for each layer as `projection` says, "auto" where
    the widths differ.
    """

    def match(ours: Tap, theirs: Tap, positions: str = "") -> Match:
        def differ() -> bool:
            return student.width(ours.name, ours.layer) != teacher.width(theirs.name)

        name = "" if ours.layer is None else str(ours.layer)
        return Match(
            ours,
            theirs,
            positions=positions,
            signal=loss.signal,
            project=name if learns(projection, differ) else None,
            any_width=not projection,
        )

    if loss.vectors == "pooled":
        return (match(Tap("pooled"), Tap("pooled")),)
    pairs = pairs_or_last(loss.layer_map, student, teacher)
    return tuple(match(Tap("hidden", s), Tap("hidden", t), loss.vectors) for s, t in pairs)


class Shares(NamedTuple):
    """What documents of a batch count for.

    Attributes:
        total: of the step, all of them together; 0 where none counts.
        share: of that, each of them, [B]: they sum to 1, or are 0.
        number: of those that count, at least 1.
    """

    total: torch.Tensor
    share: torch.Tensor
    number: torch.Tensor

    @property
    def pairs(self) -> torch.Tensor:
        """Of that total, every two documents, [B, B]."""
        return self.share[:, None] * self.share


def shares(vectors: torch.Tensor, weight: torch.Tensor | None) -> Shares:
    """What the documents of vectors [B, H] count for: `weight` [B]; None: 1 / B each."""
    of_each = even(vectors) if weight is None else weight.to(vectors.dtype)
    total = of_each.sum()
    number = (of_each > 0).sum().clamp(min=1)
    return Shares(total, of_each / safe(total), number)


def products(vectors: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """Products of every two of [..., B, H] and [..., C, H]: [..., B, C]; autocast rounds none."""
    with torch.autocast(vectors.device.type, enabled=False):
        return vectors @ (vectors if others is None else others).transpose(-1, -2)
