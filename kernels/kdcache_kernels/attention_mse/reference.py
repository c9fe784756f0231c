"""attention_mse in plain torch, a document at a time: what its gradients are held against.

Letters: N tokens of B documents, n of one of them; A heads; W and V widths of student and teacher.
"""

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype
from kdcache_kernels.relation_kl.reference import scores


def attention_mse(
    student: Tensor,
    teacher: Tensor,
    student_keys: Tensor | None,
    teacher_keys: Tensor | None,
    lengths: list[int],
    heads: tuple[int, int],
    weight: Tensor,
    *,
    of: str = "scores",
    together: bool = False,
) -> Tensor:
    """Return the loss; its gradients are autograd's. `heads` are the student's, the teacher's."""
    exact = compute_dtype(student)
    sides = (
        (student, student if student_keys is None else student_keys, heads[0]),
        (teacher, teacher if teacher_keys is None else teacher_keys, heads[1]),
    )
    total, start = torch.zeros((), dtype=exact, device=student.device), 0
    for n, w in zip(lengths, weight.to(exact), strict=True):
        own = slice(start, start + n)
        ours, theirs = (scores(x[own].to(exact), y[own].to(exact), a) for x, y, a in sides)
        if of == "probabilities":
            ours, theirs = ours.softmax(2), theirs.softmax(2)
        if together:
            ours, theirs = ours.sum(0, keepdim=True), theirs.sum(0, keepdim=True)
        total = total + w * (ours - theirs).square().mean(0).sum()
        start += n
    return total
