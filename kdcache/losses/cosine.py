"""Hidden states that point where the teacher's do: DistilBERT's cosine loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, even, sides, weighted
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LayerMap
from kdcache.losses.layer_matches import PROJECTIONS, hidden_matches, pairs_or_last
from kdcache.signals import POSITIONS, ModelSizes
from kdcache.signals.positions import positions_of

EPS = 1e-12
"""The least size of a row."""


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """1 - cos between hidden states of the student and the teacher, mean over rows.

    Source: DistilBERT, Sanh et al. 2019, arXiv:1910.01108, whose code takes the last layer of both
    at all tokens. A row of zeros has no direction: it costs 1 and moves nothing.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        layer_map: which layers; "": the last of both; else as in a hidden loss, "uniform" or pairs
            such as "1:2,2:4".
        positions: "cls", "mean", "all", "selected" (or "masked"), or "cache": what the cache holds.
        projection: "linear" learns a map from the student's width to the teacher's, "none" learns
            none, "auto" learns one where the widths differ.
        shared_projection: one map for all layers rather than one for each.
        layers: how the mapped layers become one number: "mean", "sum", or another of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "cosine"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    layer_map: LayerMap = ""
    positions: str = "cache"
    projection: str = "auto"
    shared_projection: bool = False
    layers: str = "mean"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of a cosine loss", self.weight)
        object.__setattr__(self, "positions", positions_of(self.positions))
        one_of("positions of cosine", self.positions, ("cache", *POSITIONS))
        one_of("projection of cosine", self.projection, PROJECTIONS)
        one_of("layers of cosine", self.layers, COMBINE)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The mapped layers at the wanted positions, and a projection where widths differ."""
        pairs = pairs_or_last(self.layer_map, student, teacher)
        return hidden_matches(
            pairs,
            student,
            teacher,
            positions=self.positions,
            signal=self.signal,
            projection=self.projection,
            shared=self.shared_projection,
        )

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean or sum over the mapped layers of each layer's sum over rows."""
        found = [cosine_loss(p.student, p.teacher.dense(), step.weight) for p in pairs]
        return COMBINE[self.layers](torch.stack(found), step.state)


def cosine_loss(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over rows of weight times 1 - cos; both are [N, H], `weight` [N], None: 1 / N.

    Source: Sanh et al. 2019 (DistilBERT), arXiv:1910.01108.
    """
    weight = even(student) if weight is None else weight
    live = (weight != 0)[:, None]  # a row that does not count may hold anything
    ours, theirs = (rows.where(live, 0) for rows in sides(student, teacher))
    return weighted(1 - cosine_similarity(ours, theirs, eps=EPS), weight)
