"""Divergence of relations between the tokens of each document, a few documents at a time."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcache_kernels._checks import (
    FLOATS,
    checked_weight,
    compute_dtype,
    constant,
    gradient_dtype,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
)
from kdcache_kernels._op import define
from kdcache_kernels.linear_kl import kernel
from kdcache_kernels.linear_kl.spec import Spec
from kdcache_kernels.relation_kl.pieces import Piece, pieces_of

__all__ = ["relation_kl"]

CHUNK = {"cpu": 2**20}
CHUNK_ELSEWHERE = 2**26
FORWARD = Spec(1.0, "forward", 1.0, 0.0, -100)


class Teacher(NamedTuple):
    """What the teacher's relations are between, under the names of the arguments."""

    teacher: Tensor
    teacher_keys: Tensor | None


class How(NamedTuple):
    """How the relations are worked out; `need_...`: whether the gradient is wanted."""

    heads: int
    chunk_bytes: int
    need_student: bool
    need_keys: bool


def relation_kl(
    student: Tensor,
    teacher: Tensor,
    lengths: Tensor,
    *,
    heads: int,
    student_keys: Tensor | None = None,
    teacher_keys: Tensor | None = None,
    weight: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Sum over documents of `w / (A n) sum KL(teacher's relations, the student's)`, in nats.

    The relations of a document of n tokens are softmax(X Y^T / sqrt(d)), [n, n], for each of A
    parts of d columns. X are its rows of `student` (`teacher`); Y those of `student_keys`
    (`teacher_keys`), or X again. The sum is over the A n rows of all parts.

    Loss and gradients come from one pass in the forward, and no more relations exist at once than
    fill `chunk_bytes`. The teacher's tensors are constants, even where they require a gradient.

    Args:
        student: vectors of the tokens of all documents, one after the other, pads left out, [N, W],
            float32, float16, bfloat16 or float64.
        teacher: the teacher's, [N, V], floating: V may be another width.
        lengths: tokens of each document, [B], int64, N together. One that is not on a CPU is waited
            for.
        heads: A; divides W and V.
        student_keys, teacher_keys: Y, as wide as X; both or neither.
        weight: w, [B], floating. Default 1/B. A document of weight zero may hold anything, adds
            nothing, and its gradient is exactly zero.
        chunk_bytes: size of the student's relations; the teacher's take as much. Default: 1 MiB on
            a CPU, 64 MiB elsewhere. One part of one document is the least.

    Returns:
        A scalar, float32 (float64 for float64 `student`).

    Raises:
        ValueError: wrong shape, device, lengths or heads; a gradient asked for `weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.

    Source: MiniLM, Wang et al. 2020, arXiv:2002.10957 (queries with keys, values with values);
    MiniLMv2, Wang et al. 2021, arXiv:2012.15828 (each of the three with itself).
    """
    keys = {"student_keys": student_keys, "teacher_keys": teacher_keys}
    given = {"teacher": teacher, **{name: x for name, x in keys.items() if x is not None}}
    _check(student, given, lengths, heads, chunk_bytes)
    grad = torch.is_grad_enabled()
    loss, _, _ = _op(
        student,
        student_keys,
        Teacher(constant(teacher), None if teacher_keys is None else constant(teacher_keys)),
        lengths,
        checked_weight(weight, student.new_empty(len(lengths), 0), "student"),
        How(
            heads,
            chunk_bytes or CHUNK.get(student.device.type, CHUNK_ELSEWHERE),
            grad and student.requires_grad,
            grad and student_keys is not None and student_keys.requires_grad,
        ),
    )
    return loss


def _check(
    student: Tensor,
    others: dict[str, Tensor],
    lengths: Tensor,
    heads: int,
    chunk_bytes: int | None,
) -> None:
    require_matrix("student", student)
    require_dtype("student", student, FLOATS)
    for name, x in others.items():
        require_dtype(name, x, FLOATS)
        require_device(name, x, student, "student")
    require_shape("teacher", others["teacher"], (len(student), others["teacher"].shape[-1]))
    if len(others) == 2:
        raise ValueError("student_keys and teacher_keys go together: give both, or neither")
    if len(others) == 3:
        require_shape("student_keys", others["student_keys"], tuple(student.shape))
        require_shape("teacher_keys", others["teacher_keys"], tuple(others["teacher"].shape))
    for name, x in (("student", student), ("teacher", others["teacher"])):
        if heads < 1 or not x.shape[1] or x.shape[1] % heads:
            raise ValueError(f"heads must divide the columns of {name}, {x.shape[1]}; got {heads}")
    if lengths.dim() != 1 or lengths.dtype != torch.int64:
        raise ValueError(
            f"lengths must be [documents] int64; got {tuple(lengths.shape)} {lengths.dtype}"
        )
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be at least 1, or None; got {chunk_bytes}")


def _body(
    student: Tensor,
    student_keys: Tensor | None,
    teacher: Teacher,
    lengths: Tensor,
    weight: Tensor,
    how: How,
) -> tuple[Tensor, Tensor, Tensor]:
    counts = lengths.tolist()
    if sum(counts) != len(student) or min(counts, default=1) < 1:
        raise ValueError(
            f"lengths must be 1 or more, and N = {len(student)} together; got {sum(counts)} of "
            f"{len(counts)} documents"
        )
    gradients = _empty(student, how)
    total = weight.new_zeros(())
    with torch.autocast(student.device.type, enabled=False):
        for piece in pieces_of(counts, how.heads, how.chunk_bytes // weight.itemsize):
            total += _piece(piece, (student, student_keys), teacher, weight, gradients, how)
    return total, *gradients


def _piece(
    piece: Piece,
    student: tuple[Tensor, Tensor | None],
    teacher: Teacher,
    weight: Tensor,
    gradients: tuple[Tensor, Tensor],
    how: How,
) -> Tensor:
    """The loss of a piece; its part of the gradients is written."""
    w = weight[piece.documents] / (how.heads * piece.length)
    dead = (w == 0)[:, None, None, None]

    def read(side: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        x, y = (
            # 0 times NaN, of a document that does not count, would be NaN.
            x if x is None else piece.read(x, how.heads, w.dtype).masked_fill(dead, 0).flatten(0, 1)
            for x in side
        )
        assert x is not None
        return x, x if y is None else y

    x, y = read(student)
    g, t = _products(x, y), _products(*read(teacher))
    rows = w[:, None].expand(-1, len(g) // len(w) * piece.length).reshape(-1)
    need_grad = how.need_student or how.need_keys
    loss, _, _ = kernel(
        g.flatten(0, 1), t.flatten(0, 1), None, rows, None, FORWARD, need_grad
    )  # which has put the gradient over g
    scale = x.shape[2] ** -0.5
    if how.need_student:
        by_x = g @ y if student[1] is not None else torch.baddbmm(g @ x, g.mT, x)
        piece.write(gradients[0], how.heads, by_x.mul_(scale))
    if how.need_keys:
        piece.write(gradients[1], how.heads, (g.mT @ x).mul_(scale))
    return loss


def _products(x: Tensor, y: Tensor) -> Tensor:
    """X Y^T / sqrt(d) of every part, [parts, n, n]."""
    out = x.new_empty(len(x), x.shape[1], x.shape[1])
    return out.baddbmm_(x, y.mT, beta=0, alpha=x.shape[2] ** -0.5)


def _empty(student: Tensor, how: How) -> tuple[Tensor, Tensor]:
    dtype, (n, w) = gradient_dtype(student), student.shape
    by_student, by_keys = (
        student.new_empty((n if need else 0, w), dtype=dtype)
        for need in (how.need_student, how.need_keys)
    )
    return by_student, by_keys


def _fake(student: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    how: How = others[-1]
    return (student.new_empty((), dtype=compute_dtype(student)), *_empty(student, how))


_op = define("relation_kl", _body, _fake, leaves=2)
