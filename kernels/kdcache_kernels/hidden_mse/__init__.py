"""Mean squared error of student hidden states from cached, quantised teacher hidden states."""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from kdcache_kernels._backends import dispatched
from kdcache_kernels._checks import (
    FLOATS,
    checked_weight,
    compute_dtype,
    constant,
    gradient_dtype,
    require_device,
    require_dtype,
    require_matrix,
    require_scale,
    require_shape,
)
from kdcache_kernels._op import define
from kdcache_kernels.hidden_mse import reference

__all__ = ["hidden_mse"]

Normalize: TypeAlias = Literal["none", "l2", "layernorm"]
NORMALIZE = ("none", "l2", "layernorm")
CODES = (torch.int8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32)
EXACT = (*CODES, torch.float64)


def hidden_mse(
    student: Tensor,
    codes: Tensor,
    scale: Tensor | None = None,
    *,
    normalize: Normalize = "none",
    weight: Tensor | None = None,
) -> Tensor:
    """Sum over rows of `w_i mean_H (norm(student_i) - norm(teacher_i))^2`.

    The loss and its gradient come from one pass; only `student` gets a gradient, and the teacher's
    tensors are constants even where they require one.

    Several layers go through one launch as [L, N, H], the other tensors with a leading L too.

    Args:
        student: hidden states, [N, H], float32, float16, bfloat16 or float64; rows at any stride.
        codes: the teacher's, [N, H]: int8 with `scale`, or float8_e4m3fn, float16, bfloat16 or
            float32 without; float64 too for a float64 `student`.
        scale: of int8 codes, [N] or [N, G], floating: column h is multiplied by
            `scale[:, h // (H / G)]`. G divides H.
        normalize: applied to both sides. `none`; `l2`: x / |x|, as in PKD (arXiv:1908.09355) with
            the mean over H of `F.mse_loss`; `layernorm`: zero mean, unit variance, no affine
            part, epsilon 1e-12. A row of zero length stays zero under `l2`, with zero gradient.
        weight: w, [N], floating: mask and mean in one tensor. Default 1/N. A row of weight zero
            is not read, whatever it holds, and its gradient is exactly zero.

    Returns:
        A scalar, float32 (float64 for float64 `student`).

    Raises:
        ValueError: wrong shape, device or `normalize`; int8 codes without `scale` or the reverse;
            a gradient asked for `weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.
    """
    if student.dim() == codes.dim() == 3:
        student, codes = student.flatten(0, 1), codes.flatten(0, 1)
        scale = scale if scale is None or scale.dim() < 2 else scale.flatten(0, 1)
        weight = weight if weight is None or weight.dim() < 2 else weight.flatten(0, 1)
    _check(student, codes, scale, normalize)
    loss, _ = _op(
        student,
        constant(codes),
        None if scale is None else constant(scale),
        checked_weight(weight, student, "student"),
        normalize,
        torch.is_grad_enabled() and student.requires_grad,
    )
    return loss


def _check(student: Tensor, codes: Tensor, scale: Tensor | None, normalize: str) -> None:
    require_matrix("student", student)
    require_dtype("student", student, FLOATS)
    require_shape("codes", codes, tuple(student.shape))
    require_dtype("codes", codes, EXACT if student.dtype == torch.float64 else CODES)
    require_device("codes", codes, student, "student")
    if student.shape[1] == 0:
        raise ValueError(f"student must have at least one column; got {tuple(student.shape)}")
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZE)}; got {normalize!r}")
    if (codes.dtype == torch.int8) != (scale is not None):
        raise ValueError(
            f"int8 codes need scale [N] or [N, G], float codes take none; got {codes.dtype} codes "
            f"and scale {'None' if scale is None else tuple(scale.shape)}"
        )
    if scale is not None:
        require_dtype("scale", scale, FLOATS)
        require_device("scale", scale, student, "student")
        require_scale("scale", scale, codes)


def _fake(student: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    shape = (student.shape[0] if others[-1] else 0, student.shape[1])
    gradient = student.new_empty(shape, dtype=gradient_dtype(student))
    return student.new_empty((), dtype=compute_dtype(student)), gradient


_op = define("hidden_mse", dispatched(reference.hidden_mse), _fake, leaves=1)
