"""Relations between documents: how far apart their vectors lie, and at which angles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.losses.base import Match, Over, Pair, Step, check_number
from kdcache.losses.between_documents import check_vectors, vector_matches
from kdcache.losses.layer_maps import LayerMap
from kdcache.signals import ModelSizes
from kdcache_kernels import pair_distances


@dataclass(frozen=True, kw_only=True)
class RKD:
    """Relational distillation (Park et al. 2019, arXiv:1904.05068) between vectors of documents.

    Distances are those of every two documents of a batch, over the mean of those that are not
    zero; angles are cosines at every document between every two. Smooth L1 with beta 1, mean over
    all pairs and all triples of a batch, those of a document with itself included, as in the
    paper's code. Nothing is compared value by value, so widths may differ.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        distance: factor of the distances; the paper takes 25 for classification.
        angle: factor of the angles; the paper takes 50.
        vectors: of each document: "cls", its first token's hidden state, "mean", that of all its
            tokens, or "pooled", what a classifier reads.
        layer_map: which layers' hidden states; "": the last of both. With several the mean over
            them.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "rkd"
    over: ClassVar[Over] = "batch"
    weight: float = 1.0
    distance: float = 25.0
    angle: float = 50.0
    vectors: str = "cls"
    layer_map: LayerMap = ""
    signal: str = ""

    def __post_init__(self) -> None:
        check_vectors(self)
        check_number("distance of rkd", self.distance)
        check_number("angle of rkd", self.angle)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The vectors of documents, of any widths."""
        return vector_matches(self, student, teacher)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean over the mapped layers of the batch's share of the step times its relations."""
        found = [self._of_layer(pair, step.weight) for pair in pairs]
        return torch.stack(found).mean()

    def _of_layer(self, pair: Pair, weight: torch.Tensor) -> torch.Tensor:
        factors = {"distance": self.distance, "angle": self.angle}
        return pair_distances(pair.student, pair.teacher.dense(), weight=weight, **factors)
