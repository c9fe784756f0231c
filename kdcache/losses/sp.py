"""Similarities between documents: which of a batch lie close to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.losses.base import Match, Over, Pair, Step, safe, sides
from kdcache.losses.between_documents import check_vectors, products, shares, vector_matches
from kdcache.losses.layer_maps import LayerMap
from kdcache.signals import ModelSizes


@dataclass(frozen=True, kw_only=True)
class SP:
    """Similarity-preserving distillation (Tung and Mori 2019, arXiv:1907.09682).

    Products of the vectors of every two documents of a batch, a row for each document scaled to
    unit length; squared differences between student and teacher, mean over all pairs, those of a
    document with itself included. Widths may differ. The paper takes whole feature maps for
    vectors; documents differ in length, so these are of one token, or a mean.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. The paper takes 3000.
        vectors: of each document: "cls", its first token's hidden state, "mean", that of all its
            tokens, or "pooled", what a classifier reads.
        layer_map: which layers' hidden states; "": the last of both. With several the mean over
            them.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "sp"
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
        """Mean over the mapped layers of the batch's share of the step times its similarities."""
        found = [similarity_loss(p.student, p.teacher.dense(), step.weight) for p in pairs]
        return torch.stack(found).mean()


def similarity_loss(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference of the two matrices of similarities, rows at unit length.

    Args:
        student: [B, H].
        teacher: [B, width], of any width.
        weight: [B] floating, what each document counts for, in the length of a row too; None:
            1 / B. Zero if the sum is, and for one document alone.

    Source: Tung and Mori 2019, arXiv:1907.09682.
    """
    ours, theirs = sides(student, teacher)
    of = shares(ours, weight)
    rows = [_rows(vectors, of.share) for vectors in (ours, theirs)]
    return of.total * ((rows[0] - rows[1]).square() * of.pairs).sum() / of.number


def _rows(vectors: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Similarities [B, B] over the root of the mean square of each row."""
    similar = products(vectors)
    length = torch.linalg.vector_norm(similar * share.sqrt(), dim=1, keepdim=True)
    return similar / safe(length)
