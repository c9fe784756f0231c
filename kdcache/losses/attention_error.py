"""Squared errors of attention, made of queries and keys: no scores are kept."""

from __future__ import annotations

import torch

from kdcache.losses.base import Pair
from kdcache_kernels import attention_mse


def score_loss(
    queries: Pair,
    keys: Pair,
    lengths: torch.Tensor,
    heads: int,
    weight: torch.Tensor | None = None,
    *,
    together: bool = False,
    their_heads: int | None = None,
) -> torch.Tensor:
    """Sum over documents of weight times the sum over pairs of tokens of the mean over heads of the
    squared difference of scores.

    Args:
        queries, keys: of the tokens of all documents, [N, heads * D], heads side by side.
        lengths: tokens of each document, [B] int64, on the CPU.
        heads: of both models, or of the student.
        weight: what a pair of each document counts for, [B]; None: one over the number of pairs.
        together: whether the scores of all heads are added up instead.
        their_heads: those of the teacher, which may be others then; None: as many.

    Source: Jiao et al. 2020 (TinyBERT), arXiv:1909.10351.
    """
    return attention_mse(
        queries.student,
        queries.teacher.dense(),
        lengths,
        heads=heads,
        teacher_heads=their_heads,
        student_keys=keys.student,
        teacher_keys=keys.teacher.dense(),
        together=together,
        weight=weight,
    )


def probability_error(
    queries: Pair,
    keys: Pair,
    lengths: torch.Tensor,
    heads: int,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same of what softmax makes of the scores of every token, over all of its document.

    Source: Pan et al. 2021 (Meta-KD), arXiv:2012.01266.
    """
    return attention_mse(
        queries.student,
        queries.teacher.dense(),
        lengths,
        heads=heads,
        student_keys=keys.student,
        teacher_keys=keys.teacher.dense(),
        of="probabilities",
        weight=weight,
    )
