"""Squared errors of attention between the tokens of each document: no scores are kept."""

from torch import Tensor

from kdcache_kernels._checks import compute_dtype
from kdcache_kernels.relation_kl import arguments
from kdcache_kernels.relation_kl.spec import Teacher

__all__ = ["attention_mse"]

KINDS = ("scores", "probabilities")


def attention_mse(
    student: Tensor,
    teacher: Tensor,
    lengths: Tensor,
    *,
    heads: int,
    teacher_heads: int | None = None,
    student_keys: Tensor | None = None,
    teacher_keys: Tensor | None = None,
    of: str = "scores",
    together: bool = False,
    weight: Tensor | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Sum over documents of `w / A sum (the student's scores - the teacher's)^2`.

    The scores of a document of n tokens are X Y^T / sqrt(d), [n, n], for each of A heads of d
    columns. X are its rows of `student` (`teacher`), queries; Y those of `student_keys`
    (`teacher_keys`), or X again. The sum is over all heads and pairs of tokens; a causal mask takes
    no part.

    Loss and gradients come from one pass in the forward. On a CPU at most eight rows of scores
    exist at once for each thread, and none of a document much longer than heads are wide;
    elsewhere, and in float64, no more than fill `chunk_bytes`. The teacher's tensors are constants,
    even where they require a gradient.

    Args:
        student: vectors of the tokens of all documents, one after the other, pads left out, [N, W],
            float32, float16, bfloat16 or float64.
        teacher: the teacher's, [N, V], floating: V may be another width.
        lengths: tokens of each document, [B], int64, N together. One that is not on a CPU is waited
            for.
        heads: A; divides W, and V unless there are `teacher_heads`.
        teacher_heads: those of the teacher, which divide V; only `together` they may be others.
        student_keys, teacher_keys: Y, as wide as X; both or neither.
        of: "scores", or "probabilities": what softmax over the document makes of each row of them.
        together: compare the sum of all heads' scores, once, instead of head by head: A is then 1.
        weight: w, [B], floating. Default: one over the number of pairs of tokens, the sum of n^2. A
            document of weight zero may hold anything, adds nothing, and its gradient is exactly
            zero.
        chunk_bytes: size of the student's scores, where they are made by pieces; the teacher's take
            as much. Default: 1 MiB on a CPU, 64 MiB elsewhere. One head of one document is the
            least.

    Returns:
        A scalar, float32 (float64 for float64 `student`).

    Raises:
        ValueError: wrong shape, device, lengths, heads or `of`; `together` of probabilities; a
            gradient asked for `weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.

    Source: TinyBERT, Jiao et al. 2020, arXiv:1909.10351 (scores); Meta-KD, Pan et al. 2021,
    arXiv:2012.01266 (probabilities).
    """
    others = {"teacher": teacher, "student_keys": student_keys, "teacher_keys": teacher_keys}
    both = heads, heads if teacher_heads is None else teacher_heads
    arguments.check(student, others, lengths, both, chunk_bytes)
    _check(both, of, together)
    if weight is None:  # divided by a tensor: its value is not read here
        ones = student.new_ones(len(lengths), dtype=compute_dtype(student))
        weight = ones / lengths.square().sum().clamp(min=1)
    return arguments.run(
        _op,
        of,
        student,
        student_keys,
        Teacher(teacher, teacher_keys),
        lengths,
        weight,
        heads=both,
        parts=1 if together else heads,
        chunk_bytes=chunk_bytes,
    )


def _check(heads: tuple[int, int], of: str, together: bool) -> None:
    if of not in KINDS:
        raise ValueError(f"of must be one of {', '.join(KINDS)}; got {of!r}")
    if together and of != "scores":
        raise ValueError(f"together adds scores up; got of={of!r}: set it to 'scores', or leave it")
    if heads[0] != heads[1] and not together:
        raise ValueError(
            f"teacher_heads must be heads, {heads[0]}, unless they are added up; got {heads[1]}: "
            "set together=True"
        )


_op = arguments.defined("attention_mse")
