"""Relations between the documents of a batch: how far apart they lie, and at which angles."""

import torch
from torch import Tensor

from kdcache_kernels._backends import dispatched
from kdcache_kernels._checks import (
    FLOATS,
    checked_weight,
    constant,
    gradient_dtype,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
)
from kdcache_kernels._op import define
from kdcache_kernels.pair_distances import reference

__all__ = ["pair_distances"]


def pair_distances(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: float = 1.0,
    angle: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Smooth L1 between relative distances, and between angles, of the rows of both sides.

    Distances are those of every two rows over the mean of those that are not zero; angles are
    cosines at every row between every two. Both are of what distances make of triangles, so that no
    three rows are multiplied, nothing of B x B x B is in memory on a CPU, and widths may differ.
    Loss and gradient come from one pass in the forward; the teacher's tensor is a constant.

    Args:
        student: vectors, [B, H], float32, float16, bfloat16 or float64.
        teacher: the teacher's, [B, W], floating: W may be another width.
        distance, angle: what the two losses count for.
        weight: w, [B], floating: what a row counts for. A pair counts for the product of its two
            over their sum, a triple for that of its three over the sum's square, those of a row
            with itself included. Default 1/B.

    Returns:
        A scalar, float32 (float64 for float64 `student`).

    Raises:
        ValueError: wrong shape or device; a gradient asked for `weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.

    Source: RKD, Park et al. 2019, arXiv:1904.05068.
    """
    for name, x in (("student", student), ("teacher", teacher)):
        require_matrix(name, x)
        require_dtype(name, x, FLOATS)
        require_device(name, x, student, "student")
    require_shape("teacher", teacher, (len(student), teacher.shape[1]))
    loss, _ = _op(
        student,
        constant(teacher),
        checked_weight(weight, student, "student"),
        float(distance),
        float(angle),
        torch.is_grad_enabled() and student.requires_grad,
    )
    return loss


_squares = dispatched(reference.pair_squares)
_angles = dispatched(reference.pair_angles)


def _body(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    distance: float,
    angle: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (x.to(weight.dtype) for x in (student, teacher))
        total = weight.sum()
        share = weight / reference.safe(total)
        square, other = _squares(ours), _squares(theirs)
        loss, slope = reference.relative_distances(square, other, share)
        loss, slope = distance * loss, distance * slope
        if angle != 0:
            of_angles, slope_of_angles = _angles(share, square, other, need_grad)
            loss = loss + angle * of_angles
            slope = slope + angle * slope_of_angles if need_grad else slope
        loss = (total * loss).to(weight.dtype)
        if not need_grad:
            return loss, student.new_empty((0, student.shape[1]))
        both, ours = (slope + slope.t()) * (2 * total), ours.double()
        ours = ours - ours.mean(0)  # changes no difference, and leaves fewer digits to cancel
        gradient = both.sum(1, keepdim=True) * ours - both @ ours
    return loss, gradient.to(gradient_dtype(student))


def _fake(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    distance: float,
    angle: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    shape = (len(student) if need_grad else 0, student.shape[1])
    dtype = gradient_dtype(student) if need_grad else student.dtype
    return weight.new_empty(()), student.new_empty(shape, dtype=dtype)


_op = define("pair_distances", _body, _fake, leaves=1)
