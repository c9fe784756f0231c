"""relation_kl and attention_mse in plain torch: a piece at a time as they run without a kernel, and
relation_kl as its formula is, which its gradients are held against.

Letters: N tokens of B documents, n of one of them; A heads; W and V widths of student and teacher.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype, gradient_dtype
from kdcache_kernels.linear_kl import kernel
from kdcache_kernels.linear_kl.spec import Spec
from kdcache_kernels.relation_kl.pieces import Piece, pieces_of
from kdcache_kernels.relation_kl.spec import How, Teacher

FORWARD = Spec(1.0, "forward", 1.0, 0.0, -100)

Sides: TypeAlias = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""X and Y of the student, and of the teacher, [parts, n, d]."""


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
        logq, logp = (
            scores(x[own].to(exact), y[own].to(exact), heads).log_softmax(2) for x, y in sides
        )
        total = total + w * (logp.exp() * (logp - logq)).sum() / (heads * max(n, 1))
        start += n
    return total


def scores(x: Tensor, y: Tensor, heads: int) -> Tensor:
    """X Y^T / sqrt(d) of every head, [A, n, n], of vectors [n, W]."""
    a, b = (side.view(len(x), heads, -1).transpose(0, 1) for side in (x, y))
    found: Tensor = a.shape[2] ** -0.5 * a @ b.transpose(1, 2)
    return found


def token_pairs(
    student: Tensor,
    student_keys: Tensor | None,
    teacher: Teacher,
    lengths: Sequence[int],
    weight: Tensor,
    how: How,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of `how.kind` and the gradients of X and Y, empty where not needed."""
    gradients = empty_gradients(student, how)
    total = weight.new_zeros(())
    with torch.autocast(student.device.type, enabled=False):
        for piece in pieces_of(lengths, how.parts, how.chunk_bytes // weight.itemsize):
            total += _piece(piece, (student, student_keys), teacher, weight, gradients, how)
    return total, *gradients


def empty_gradients(student: Tensor, how: How) -> tuple[Tensor, Tensor]:
    """Room for the gradients of X and Y."""
    dtype, (n, w) = gradient_dtype(student), student.shape
    by_student, by_keys = (
        student.new_empty((n if need else 0, w), dtype=dtype)
        for need in (how.need_student, how.need_keys)
    )
    return by_student, by_keys


def _piece(
    piece: Piece,
    student: tuple[Tensor, Tensor | None],
    teacher: Teacher,
    weight: Tensor,
    gradients: tuple[Tensor, Tensor],
    how: How,
) -> Tensor:
    """The loss of a piece; its part of the gradients is written."""
    w = weight[piece.documents] / how.parts
    dead = (w == 0)[:, None, None, None]

    def read(side: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        x, y = (
            # 0 times NaN, of a document that does not count, would be NaN.
            x if x is None else piece.read(x, how.parts, w.dtype).masked_fill(dead, 0).flatten(0, 1)
            for x in side
        )
        assert x is not None
        return x, x if y is None else y

    (x, y), theirs = read(student), read(teacher)
    each = w.repeat_interleave(len(x) // len(w))
    loss, g, factor = COMPARE[how.kind](((x, y), theirs), each, how)
    if how.need_student:
        by_x = g @ y if student[1] is not None else torch.baddbmm(g @ x, g.mT, x)
        piece.write(gradients[0], how.parts, by_x.mul_(factor))
    if how.need_keys:
        piece.write(gradients[1], how.parts, (g.mT @ x).mul_(factor))
    return loss


Compared: TypeAlias = tuple[Tensor, Tensor, Tensor | float]
"""A loss, and two tensors whose product is its slope in X Y^T; the first is [parts, n, n]."""


def _divergence(sides: Sides, w: Tensor, how: How) -> Compared:
    g, t = _products(*sides[0], how.scale), _products(*sides[1], how.teacher_scale)
    rows = (w / g.shape[1]).repeat_interleave(g.shape[1])
    need_grad = how.need_student or how.need_keys
    loss, _, _ = kernel(
        g.flatten(0, 1), t.flatten(0, 1), None, rows, None, FORWARD, need_grad
    )  # which has put the gradient over g
    return loss, g, how.scale


def _scores(sides: Sides, w: Tensor, how: How) -> Compared:
    (x, y), theirs = sides
    apart = _products(*theirs, -how.teacher_scale).baddbmm_(x, y.mT, alpha=how.scale)
    return _squares(apart, w), apart, 2 * how.scale * w[:, None, None]


def _probabilities(sides: Sides, w: Tensor, how: How) -> Compared:
    ours = _products(*sides[0], how.scale).softmax(-1)
    apart = ours - _products(*sides[1], how.teacher_scale).softmax(-1)
    slope = ours * (apart - (ours * apart).sum(-1, keepdim=True))
    return _squares(apart, w), slope, 2 * how.scale * w[:, None, None]


COMPARE = {"divergence": _divergence, "scores": _scores, "probabilities": _probabilities}
"""By `How.kind`, as are `spec.KINDS`."""


def _squares(apart: Tensor, w: Tensor) -> Tensor:
    each: Tensor = torch.linalg.vector_norm(apart.flatten(1), dim=1)
    return (w * each.square()).sum()


def _products(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """X Y^T times `scale` of every part, [parts, n, n]."""
    out = x.new_empty(len(x), x.shape[1], x.shape[1])
    return out.baddbmm_(x, y.mT, beta=0, alpha=scale)
