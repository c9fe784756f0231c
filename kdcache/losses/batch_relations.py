"""Relations between the documents of a batch, in any number of heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import ConfigError
from kdcache.losses.base import Match, Over, Pair, Step, sides
from kdcache.losses.between_documents import check_vectors, products, shares, vector_matches
from kdcache.losses.layer_maps import LayerMap
from kdcache.signals import ModelSizes


@dataclass(frozen=True, kw_only=True)
class BatchRelations:
    """KL from the teacher's relations between the documents of a batch to the student's.

    The vectors of documents are cut into `heads` parts of d columns; a relation is the softmax over
    the batch of a part's products with that of every document, over the square root of d, itself
    included. Mean over parts and documents. Widths may differ.

    Source: Zhang et al. 2024 (MLKD-BERT), arXiv:2407.02775, by the code of HandH1998/tmp_bert_mlkd.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        heads: parts that the width of both models is cut into.
        vectors: of each document: "cls", its first token's hidden state, "mean", that of all its
            tokens, or "pooled", what a classifier reads.
        layer_map: which layers' hidden states; "": the last of both. With several the mean over
            them.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "batch_relations"
    over: ClassVar[Over] = "batch"
    weight: float = 1.0
    heads: int = 1
    vectors: str = "cls"
    layer_map: LayerMap = ""
    signal: str = ""

    def __post_init__(self) -> None:
        check_vectors(self)
        if self.heads < 1:
            raise ConfigError(f"heads of batch_relations must be 1 or more; got {self.heads}")

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The vectors of documents, of any widths that the heads divide."""
        found = vector_matches(self, student, teacher)
        for name, sizes, tap in (
            *(("student", student, match.student) for match in found),
            *(("teacher", teacher, match.teacher) for match in found),
        ):
            width = sizes.width(tap.name, tap.layer if name == "student" else None)
            if width % self.heads:
                raise ConfigError(
                    f"heads of batch_relations: {self.heads} does not divide {width}, the width of "
                    f"the {name}'s {tap.name}: set it to a number that divides both widths"
                )
        return found

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean over the mapped layers of the batch's share of the step times its divergence."""
        found = [
            batch_relation_loss(p.student, p.teacher.dense(), self.heads, step.weight)
            for p in pairs
        ]
        return torch.stack(found).mean()


def batch_relation_loss(
    student: torch.Tensor, teacher: torch.Tensor, heads: int, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over heads and documents of KL(teacher's relations || student's), in nats.

    Args:
        student: [B, H]; `heads` divides H.
        teacher: [B, width]; `heads` divides it.
        weight: [B] floating, what each document counts for, in the softmax too; None: 1 / B. Zero
            if the sum is, and for one document alone.

    Source: HandH1998/tmp_bert_mlkd, after MiniLMv2 (arXiv:2012.15828).
    """
    ours, theirs = sides(student, teacher)
    of = shares(ours, weight)
    there = of.share > 0
    log_share = torch.where(there, of.share, 1.0).log()
    logq, logp = (
        _relations(side, heads).add(log_share).masked_fill(~there, -torch.inf).log_softmax(-1)
        for side in (ours, theirs)
    )
    apart = torch.where(there, logp.exp() * (logp - logq), 0.0)
    rows = torch.where(there, apart.sum(-1).mean(0), 0.0)
    return of.total * (rows * of.share).sum()


def _relations(vectors: torch.Tensor, heads: int) -> torch.Tensor:
    """Products of every two documents in each part, [heads, B, B]."""
    parts = vectors.unflatten(1, (heads, -1)).transpose(0, 1)
    return products(parts) / math.sqrt(parts.shape[2])
