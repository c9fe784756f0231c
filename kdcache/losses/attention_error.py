"""Squared errors of attention, made of queries and keys: no scores are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from kdcache.losses.base import Pair, exact
from kdcache_kernels.relation_kl.pieces import Piece, pieces_of

CHUNK = {"cpu": 2**20}
CHUNK_ELSEWHERE = 2**26
"""Bytes of the scores that exist at once."""


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
    split = heads, heads if their_heads is None else their_heads
    return _error(_scores, queries, keys, lengths, split, weight, together)


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
    return _error(_probabilities, queries, keys, lengths, (heads, heads), weight, together=False)


Sides = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries and keys of the student, and of the teacher, [documents * heads, L, D]."""
Way = Callable[[Sides, tuple[float, float]], tuple[torch.Tensor, torch.Tensor]]
"""From these and both scales: the difference whose squares are added up, and half of their slope in
the student's scores, both [documents * heads, L, L]."""


def _scores(sides: Sides, scales: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y, t, u = sides
    apart = torch.bmm(t, u.mT).mul_(-scales[1])
    apart.baddbmm_(x, y.mT, alpha=scales[0])
    return apart, apart


def _probabilities(sides: Sides, scales: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y, t, u = sides
    ours = torch.bmm(x, y.mT).mul_(scales[0]).softmax(-1)
    apart = ours - torch.bmm(t, u.mT).mul_(scales[1]).softmax(-1)
    return apart, ours * (apart - (ours * apart).sum(-1, keepdim=True))


def _error(
    way: Way,
    queries: Pair,
    keys: Pair,
    lengths: torch.Tensor,
    heads: tuple[int, int],
    weight: torch.Tensor | None,
    together: bool,
) -> torch.Tensor:
    if weight is None:
        share = 1 / max(1, int((lengths**2).sum()))
        weight = exact(queries.student[:0]).new_full((len(lengths),), share)
    sides = queries.student, keys.student, queries.teacher.dense(), keys.teacher.dense()
    widths = (side.shape[1] // own for side, own in zip(sides[::2], heads, strict=True))
    scales = tuple(width**-0.5 for width in widths)
    need = torch.is_grad_enabled() and (sides[0].requires_grad or sides[1].requires_grad)
    found: torch.Tensor = _Error.apply(  # type: ignore[no-untyped-call]  # so in torch
        *sides, way, lengths.tolist(), 1 if together else heads[0], scales, weight, need
    )
    return found


class _Error(torch.autograd.Function):
    """Value and gradient in one go over the documents."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        their_queries: torch.Tensor,
        their_keys: torch.Tensor,
        way: Way,
        lengths: list[int],
        heads: int,
        scales: tuple[float, float],
        weight: torch.Tensor,
        need: bool,
    ) -> torch.Tensor:
        dtype = exact(queries[:0]).dtype
        weight = weight.to(dtype) / heads
        ours = [queries, keys]
        gradients = [torch.empty_like(x) if need else x[:0] for x in ours]
        total = weight.new_zeros(())
        with torch.autocast(queries.device.type, enabled=False):
            for piece in pieces(lengths, heads, weight):
                w = weight[piece.documents]
                dead = (w == 0)[:, None, None, None]  # 0 times NaN would be NaN
                x, y, t, u = (
                    piece.read(side, heads, dtype).masked_fill(dead, 0).flatten(0, 1)
                    for side in (*ours, their_queries, their_keys)
                )
                apart, slope = way((x, y, t, u), scales)
                rows = apart.view(len(w), -1)
                total += (w * torch.linalg.vector_norm(rows, dim=1).square()).sum()
                if need:
                    factor = (2 * scales[0]) * w.repeat_interleave(len(x) // len(w))[:, None, None]
                    piece.write(gradients[0], heads, (slope @ y).mul_(factor))
                    piece.write(gradients[1], heads, (slope.mT @ x).mul_(factor))
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        made = (x * gradient.to(x.dtype) for x in ctx.saved_tensors)
        return (*made, *(None,) * 8)


def pieces(
    lengths: list[int], heads: int, weight: torch.Tensor, *, layers: int = 1
) -> Iterator[Piece]:
    """Documents of one length, as many as there is room for their scores at so many layers."""
    room = CHUNK.get(weight.device.type, CHUNK_ELSEWHERE) // weight.itemsize
    return pieces_of(lengths, heads, room // layers)
