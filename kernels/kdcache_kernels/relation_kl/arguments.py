"""Arguments that relation_kl and attention_mse share, checked; and what both ops run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdcache_kernels._backends import dispatched
from kdcache_kernels._checks import (
    FLOATS,
    checked_weight,
    compute_dtype,
    constant,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
)
from kdcache_kernels._op import define
from kdcache_kernels.relation_kl import reference
from kdcache_kernels.relation_kl.spec import How, Teacher

CHUNK = {"cpu": 2**20}
CHUNK_ELSEWHERE = 2**26

Op = Callable[[Tensor, Tensor | None, Teacher, Tensor, Tensor, How], tuple[Tensor, Tensor, Tensor]]

kernel = dispatched(reference.token_pairs)


def check(
    student: Tensor,
    others: dict[str, Tensor | None],
    lengths: Tensor,
    heads: tuple[int, int],
    chunk_bytes: int | None,
) -> None:
    """Raise ValueError or TypeError unless both sides are vectors of the same tokens; `heads` are
    the student's and the teacher's.
    """
    require_matrix("student", student)
    require_dtype("student", student, FLOATS)
    given = {name: x for name, x in others.items() if x is not None}
    for name, x in given.items():
        require_dtype(name, x, FLOATS)
        require_device(name, x, student, "student")
    require_shape("teacher", given["teacher"], (len(student), given["teacher"].shape[-1]))
    if len(given) == 2:
        raise ValueError("student_keys and teacher_keys go together: give both, or neither")
    if len(given) == 3:
        require_shape("student_keys", given["student_keys"], tuple(student.shape))
        require_shape("teacher_keys", given["teacher_keys"], tuple(given["teacher"].shape))
    sides = (("student", student, heads[0]), ("teacher", given["teacher"], heads[1]))
    for name, x, count in sides:
        if count < 1 or not x.shape[1] or x.shape[1] % count:
            raise ValueError(f"heads must divide the columns of {name}, {x.shape[1]}; got {count}")
    if lengths.dim() != 1 or lengths.dtype != torch.int64:
        raise ValueError(
            f"lengths must be [documents] int64; got {tuple(lengths.shape)} {lengths.dtype}"
        )
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be at least 1, or None; got {chunk_bytes}")


def run(
    op: Op,
    kind: str,
    student: Tensor,
    student_keys: Tensor | None,
    teacher: Teacher,
    lengths: Tensor,
    weight: Tensor | None,
    *,
    heads: tuple[int, int],
    parts: int,
    chunk_bytes: int | None,
) -> Tensor:
    """The loss of an op, of arguments that are right; without `weight` a document's is 1 / B."""
    grad = torch.is_grad_enabled()
    theirs = teacher.teacher_keys
    how = How(
        kind,
        parts,
        (student.shape[1] // heads[0]) ** -0.5,
        (teacher.teacher.shape[1] // heads[1]) ** -0.5,
        chunk_bytes or CHUNK.get(student.device.type, CHUNK_ELSEWHERE),
        grad and student.requires_grad,
        grad and student_keys is not None and student_keys.requires_grad,
    )
    loss, _, _ = op(
        student,
        student_keys,
        Teacher(constant(teacher.teacher), None if theirs is None else constant(theirs)),
        lengths,
        checked_weight(weight, student.new_empty(len(lengths), 0), "student"),
        how,
    )
    return loss


def defined(name: str) -> Op:
    """The op, registered with torch's dispatcher."""
    return define(name, _body, _fake, leaves=2)


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
    return kernel(student, student_keys, teacher, counts, weight, how)


def _fake(student: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    how: How = others[-1]
    loss = student.new_empty((), dtype=compute_dtype(student))
    return (loss, *reference.empty_gradients(student, how))
