"""Relations between documents: how far apart their vectors lie, and at which angles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import smooth_l1_loss

from kdcache.losses.base import Match, Over, Pair, Step, check_number, safe, sides
from kdcache.losses.between_documents import check_vectors, products, shares, vector_matches
from kdcache.losses.layer_maps import LayerMap
from kdcache.signals import ModelSizes


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
        distance, angle = relation_losses(pair.student, pair.teacher.dense(), weight)
        return self.distance * distance + self.angle * angle


def relation_losses(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth L1 between the relative distances, and between the angles, of documents.

    Args:
        student: [B, H].
        teacher: [B, width], of any width.
        weight: [B] floating, what each document counts for; None: 1 / B. A pair counts for the
            product of its two weights over their sum, a triple for that of its three over the
            sum's square: together they count for that sum. Zero where that is zero.

    Source: Park et al. 2019, arXiv:1904.05068.
    """
    ours, theirs = sides(student, teacher)
    of = shares(ours, weight)
    (near, angles), (known, wanted) = (_relations(x, of.pairs) for x in (ours, theirs))
    distance = smooth_l1_loss(near, known, reduction="none")
    angle = smooth_l1_loss(angles, wanted, reduction="none")
    triples = of.share[:, None, None] * of.pairs
    return of.total * (distance * of.pairs).sum(), of.total * (angle * triples).sum()


def _relations(vectors: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances [B, B] over their mean, and cosines [B, B, B], where the first is the corner."""
    apart = vectors[None] - vectors[:, None]
    distance = torch.linalg.vector_norm(apart, dim=2)
    counted = (pairs * (distance > 0)).sum()
    mean = (pairs * distance).sum() / safe(counted)
    cosines = products(apart / safe(distance)[..., None])
    return distance / safe(mean), cosines
