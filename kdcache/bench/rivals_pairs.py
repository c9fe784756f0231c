"""Losses between the tokens of each document in plain torch, all documents at once.

Vectors are [B, L, H]; of documents of unlike lengths the pads are masked, or, by who is told that
there are none, not looked at.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.bench.kernels_inputs import Tensors
from kdcache.bench.rivals import full

KINDS = ("query", "key", "value")
FAR = -1e4  # a score so low has no probability, and its logarithm is finite


def heads_of(x: Tensor, heads: int) -> int:
    """As many of `heads` as the width of vectors can be cut into."""
    return math.gcd(heads, x.shape[-1])


def relation_kl(x: Tensors, *, heads: int, padded: bool = True) -> Tensor:
    """KL between the relations of each document's tokens, of queries, keys and values."""
    student = full(x["query"])
    rows = heads_of(student, heads) * student[..., 0].numel()
    far, weight = masks(x, student) if padded else (None, None)
    total = student.new_zeros(())
    for kind in KINDS:
        logq, logp = (
            _log_relations(full(side).to(student.dtype), heads, far)
            for side in (x[kind], x[f"teacher_{kind}"])
        )
        terms = logp.exp() * (logp - logq)
        total = total + (terms if weight is None else terms * weight).sum() / rows
    return total


def masks(x: Tensors, like: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to the scores of keys, and what a row counts for, relative to one of a document
    as long as the longest.
    """
    longest = like.shape[1]
    real = torch.arange(longest) < x["lengths"][:, None]
    far, weight = FAR * ~real, longest * real / x["lengths"][:, None]
    return far.to(like)[:, None, None, :], weight.to(like)[:, None, :, None]


def _log_relations(x: Tensor, heads: int, far: Tensor | None) -> Tensor:
    scores = _scores(x, x, heads)
    return (scores if far is None else scores + far).log_softmax(3)


def attention_mse(x: Tensors, *, heads: int, of: str = "scores") -> Tensor:
    """Squared errors of scores or probabilities, of documents without pads."""
    student = full(x["query"])
    ours = _scores(student, full(x["key"]), heads)
    query, key = (x[f"teacher_{kind}"].to(student.dtype) for kind in KINDS[:2])
    theirs = _scores(query, key, heads)
    if of == "probabilities":
        ours, theirs = ours.softmax(3), theirs.softmax(3)
    return F.mse_loss(ours, theirs)


def _scores(x: Tensor, y: Tensor, heads: int) -> Tensor:
    """X Y^T / sqrt(d) of every head, [B, A, L, L], of vectors [B, L, H]."""
    a, b = (side.unflatten(2, (heads_of(x, heads), -1)).transpose(1, 2) for side in (x, y))
    found: Tensor = (a / math.sqrt(a.shape[3])) @ b.mT
    return found
