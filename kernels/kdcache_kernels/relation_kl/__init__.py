"""Divergence of relations between the tokens of each document, of which few exist at once."""

from torch import Tensor

from kdcache_kernels.relation_kl import arguments
from kdcache_kernels.relation_kl.spec import Teacher

__all__ = ["relation_kl"]


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

    Loss and gradients come from one pass in the forward. On a CPU eight rows of relations exist at
    once for each thread; elsewhere, and in float64, no more than fill `chunk_bytes`. The teacher's
    tensors are constants, even where they require a gradient.

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
        chunk_bytes: size of the student's relations, where they are made by pieces; the teacher's
            take as much. Default: 1 MiB on a CPU, 64 MiB elsewhere. One part of one document is the
            least.

    Returns:
        A scalar, float32 (float64 for float64 `student`).

    Raises:
        ValueError: wrong shape, device, lengths or heads; a gradient asked for `weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.

    Source: MiniLM, Wang et al. 2020, arXiv:2002.10957 (queries with keys, values with values);
    MiniLMv2, Wang et al. 2021, arXiv:2012.15828 (each of the three with itself).
    """
    others = {"teacher": teacher, "student_keys": student_keys, "teacher_keys": teacher_keys}
    arguments.check(student, others, lengths, (heads, heads), chunk_bytes)
    return arguments.run(
        _op,
        "divergence",
        student,
        student_keys,
        Teacher(teacher, teacher_keys),
        lengths,
        weight,
        heads=(heads, heads),
        parts=heads,
        chunk_bytes=chunk_bytes,
    )


_op = arguments.defined("relation_kl")
