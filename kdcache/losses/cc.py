"""Congruence of neighbouring documents: how far both are from what the teacher makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, safe, sides
from kdcache.losses.between_documents import check_vectors, shares, vector_matches
from kdcache.losses.layer_maps import LayerMap
from kdcache.losses.layer_matches import PROJECTIONS
from kdcache.signals import ModelSizes


@dataclass(frozen=True, kw_only=True)
class CC:
    """Correlation congruence (Peng et al. 2019, arXiv:1904.01802), as RepDistiller computes it.

    The absolute differences of a document's vector from the teacher's, times those of the next
    document of the batch, summed over the width; mean over neighbours. The paper compares kernel
    matrices of the documents of a batch instead; that is closer to the loss `sp`.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. RepDistiller takes 0.02.
        vectors: of each document: "cls", its first token's hidden state, "mean", that of all its
            tokens, or "pooled", what a classifier reads.
        layer_map: which layers' hidden states; "": the last of both. With several the mean over
            them.
        projection: "linear" learns a map from the student's width to the teacher's for each layer,
            "none" learns none, "auto" learns one where the widths differ.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "cc"
    over: ClassVar[Over] = "batch"
    weight: float = 1.0
    vectors: str = "cls"
    layer_map: LayerMap = ""
    projection: str = "auto"
    signal: str = ""

    def __post_init__(self) -> None:
        check_vectors(self)
        one_of("projection of cc", self.projection, PROJECTIONS)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The vectors of documents, and a map where it is learned."""
        return vector_matches(self, student, teacher, projection=self.projection)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean over the mapped layers of the batch's share of the step times its congruence."""
        found = [congruence_loss(p.student, p.teacher.dense(), step.weight) for p in pairs]
        return torch.stack(found).mean()


def congruence_loss(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over neighbours in a batch of the product of their absolute differences.

    Args:
        student: [B, H].
        teacher: [B, H].
        weight: [B] floating, what each document counts for; None: 1 / B. Neighbours are those that
            count, and count for the product of their weights. Zero for one document alone.

    Source: Peng et al. 2019, arXiv:1904.01802, in the code of RepDistiller.
    """
    ours, theirs = sides(student, teacher)
    of = shares(ours, weight)
    there = of.share > 0
    apart, share = (ours - theirs).abs()[there], of.share[there]
    pairs = share[:-1] * share[1:]
    products = (apart[:-1] * apart[1:]).sum(1)
    return of.total * (products * pairs).sum() / safe(pairs.sum())
