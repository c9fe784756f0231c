"""Losses between the tokens of each document, their gradient made in the forward and in place.

The leanest forms in plain torch: of each side one tensor of scores is held, and the student's turns
into the gradient. Vectors as in `rivals_pairs`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdcache.bench.kernels_inputs import Tensors
from kdcache.bench.rivals import full
from kdcache.bench.rivals_lean import scaled
from kdcache.bench.rivals_pairs import KINDS, heads_of, masks


def relation_kl(x: Tensors, *, heads: int, padded: bool = True) -> Tensor:
    """`rivals_pairs.relation_kl`."""
    losses: list[Tensor] = [
        _Relation.apply(x[kind], x[f"teacher_{kind}"], x, heads, padded)  # type: ignore[no-untyped-call]  # torch
        for kind in KINDS
    ]
    return torch.stack(losses).sum()


def attention_mse(x: Tensors, *, heads: int, of: str = "scores") -> Tensor:
    """`rivals_pairs.attention_mse`."""
    sides = (x["query"], x["key"], x["teacher_query"], x["teacher_key"])
    loss: Tensor = _Attention.apply(*sides, heads, of)  # type: ignore[no-untyped-call]  # torch
    return loss


def _cut(x: Tensor, heads: int) -> Tensor:
    """[B, A, L, d] of vectors [B, L, H]."""
    cut: Tensor = full(x).unflatten(2, (heads_of(x, heads), -1)).transpose(1, 2)
    return cut


def _whole(x: Tensor, like: Tensor) -> Tensor:
    """[B, L, H] again."""
    return x.transpose(1, 2).flatten(2).to(like.dtype)


class _Relation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, x: Tensors, heads: int, padded: bool
    ) -> Tensor:
        ours, theirs = _cut(student, heads), _cut(teacher, heads)
        far, weight = masks(x, ours[:, 0]) if padded else (None, None)
        rows = ours[..., 0].numel()
        logs = []
        for side in (theirs.to(ours.dtype), ours):
            scores = (side / math.sqrt(side.shape[3])) @ side.mT
            logs.append(torch.log_softmax(scores if far is None else scores.add_(far), 3))
        logp, logq = logs
        p = logp.exp()
        apart = logp.sub_(logq)
        if weight is not None:
            apart.mul_(weight)
        loss = torch.dot(p.view(-1), apart.view(-1)) / rows
        by_scores = logq.exp_().sub_(p).mul_(1 / (rows * math.sqrt(ours.shape[3])))
        if weight is not None:
            by_scores.mul_(weight)
        ctx.save_for_backward(_whole(by_scores @ ours + by_scores.mT @ ours, student))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled(ctx.saved_tensors, grads[0]), None, None, None, None)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, query2: Tensor, key2: Tensor, heads: int, of: str
    ) -> Tensor:
        q, k, q2, k2 = (_cut(side, heads) for side in (query, key, query2, key2))
        scale = 1 / math.sqrt(q.shape[3])
        ours, theirs = (q * scale) @ k.mT, (q2 / math.sqrt(q2.shape[3])).to(q.dtype) @ k2.mT.to(q)
        if of == "probabilities":
            ours, theirs = ours.softmax(3), theirs.softmax(3)
        off = theirs.neg_().add_(ours)
        loss = torch.dot(off.view(-1), off.view(-1)) / off.numel()
        off.mul_(2 / off.numel())
        if of == "probabilities":
            off.mul_(ours)
            off.addcmul_(ours, off.sum(3, keepdim=True), value=-1)
        off.mul_(scale)
        ctx.save_for_backward(_whole(off @ k, query), _whole(off.mT @ q, key))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled(ctx.saved_tensors, grads[0]), None, None, None, None)
