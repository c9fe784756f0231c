"""Probabilities that a document is another's neighbour, from the cosines of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.losses.base import Match, Over, Pair, Step, safe, sides
from kdcache.losses.between_documents import check_vectors, products, shares, vector_matches
from kdcache.losses.layer_maps import LayerMap
from kdcache.signals import ModelSizes

EPSILON = 1e-7


@dataclass(frozen=True, kw_only=True)
class PKT:
    """Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv:1803.10837).

    (1 + cosine) / 2 of every two documents of a batch, each document's with all of them made to sum
    to 1; the divergence of the student's from the teacher's, mean over all pairs: for B documents
    that is KL over B^2, hence the large weights in use. Widths may differ.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. RepDistiller takes 30000.
        vectors: of each document: "cls", its first token's hidden state, "mean", that of all its
            tokens, or "pooled", what a classifier reads.
        layer_map: which layers' hidden states; "": the last of both. With several the mean over
            them.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "pkt"
    over: ClassVar[Over] = "batch"
    weight: float = 1.0
    vectors: str = "cls"
    layer_map: LayerMap = ""
    signal: str = ""

    def __post_init__(self) -> None:
        check_vectors(self)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The vectors of documents, of any widths."""
        return vector_matches(self, student, teacher)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean over the mapped layers of the batch's share of the step times its divergence."""
        found = [neighbour_loss(p.student, p.teacher.dense(), step.weight) for p in pairs]
        return torch.stack(found).mean()


def neighbour_loss(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over pairs of documents of p log((p + 1e-7) / (q + 1e-7)), in nats.

    Args:
        student: [B, H].
        teacher: [B, width], of any width.
        weight: [B] floating, what each document counts for, as a neighbour too; None: 1 / B. Zero
            if the sum is, and for one document alone.

    Source: Passalis and Tefas 2018, arXiv:1803.10837, with the means of their code.
    """
    ours, theirs = sides(student, teacher)
    of = shares(ours, weight)
    q, p = (_neighbours(vectors, of.share) / of.number for vectors in (ours, theirs))
    return of.total * (p * ((p + EPSILON) / (q + EPSILON)).log() * of.pairs).sum()


def _neighbours(vectors: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """How like every two documents are, [B, B], over the mean of each row."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    alike = (products(vectors / (length + EPSILON)) + 1) / 2
    return alike / safe((alike * share).sum(1, keepdim=True))
