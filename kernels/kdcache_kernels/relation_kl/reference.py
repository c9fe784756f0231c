"""relation_kl in plain torch, a document and a head at a time: what its gradients are held against.

Letters: N tokens of B documents, n of one of them; A heads; W and V widths of student and teacher.
"""

from typing import TypedDict

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype


class Inputs(TypedDict):
    """Tensors that `relation_kl` takes, as `make_inputs` draws them."""

    student: Tensor
    teacher: Tensor
    student_keys: Tensor
    teacher_keys: Tensor
    lengths: Tensor
    weight: Tensor


def make_inputs(
    lengths: list[int],
    width: int,
    teacher: int,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Draw vectors of both sides for documents of those lengths, and weights of the documents."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)

    def draw(columns: int) -> Tensor:
        return 1.5 * torch.randn(n, columns, generator=g)

    return {
        "student": draw(width).to(dtype),
        "teacher": draw(teacher),
        "student_keys": draw(width).to(dtype),
        "teacher_keys": draw(teacher),
        "lengths": torch.tensor(lengths),
        "weight": torch.rand(len(lengths), generator=g) + 0.1,
    }


def relation_kl(
    student: Tensor,
    teacher: Tensor,
    student_keys: Tensor | None,
    teacher_keys: Tensor | None,
    lengths: list[int],
    heads: int,
    weight: Tensor,
) -> Tensor:
    """Return the loss; its gradients are autograd's."""
    exact = compute_dtype(student)
    sides = (
        (student, student if student_keys is None else student_keys),
        (teacher, teacher if teacher_keys is None else teacher_keys),
    )
    total, start = torch.zeros((), dtype=exact, device=student.device), 0
    for n, w in zip(lengths, weight.to(exact), strict=True):
        own = slice(start, start + n)
        logq, logp = (_log_relations(x[own].to(exact), y[own].to(exact), heads) for x, y in sides)
        total = total + w * (logp.exp() * (logp - logq)).sum() / (heads * max(n, 1))
        start += n
    return total


def _log_relations(x: Tensor, y: Tensor, heads: int) -> Tensor:
    """Logarithms of the relations of each token with all, [A, n, n], of vectors [n, W]."""
    a, b = (side.view(len(x), heads, -1).transpose(0, 1) for side in (x, y))
    scores: Tensor = a.shape[2] ** -0.5 * a @ b.transpose(1, 2)
    return scores.log_softmax(2)
