"""Mean squared error of student hidden states from cached, quantised teacher hidden states."""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from kdcache_kernels._autograd import input_gradient, keep_gradient
from kdcache_kernels._checks import (
    FLOATS,
    compute_dtype,
    constant,
    gradient_dtype,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
    row_weight,
)
from kdcache_kernels._op import define

__all__ = ["hidden_mse"]

Normalize: TypeAlias = Literal["none", "l2", "layernorm"]
Outputs: TypeAlias = tuple[Tensor, Tensor]
NORMALIZE = ("none", "l2", "layernorm")
CODES = (torch.int8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32)


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
            float32 without.
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
    loss: Tensor = _op(
        student,
        constant(codes),
        None if scale is None else constant(scale),
        row_weight(weight, student, "student"),
        normalize,
        torch.is_grad_enabled() and student.requires_grad,
    )[0]
    return loss


def _check(student: Tensor, codes: Tensor, scale: Tensor | None, normalize: str) -> None:
    require_matrix("student", student)
    require_dtype("student", student, FLOATS)
    require_shape("codes", codes, tuple(student.shape))
    require_dtype("codes", codes, CODES)
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
        _check_scale(student, scale)


def _check_scale(student: Tensor, scale: Tensor) -> None:
    n, h = student.shape
    require_dtype("scale", scale, FLOATS)
    require_device("scale", scale, student, "student")
    groups = scale.shape[1] if scale.dim() == 2 else 1
    if scale.dim() not in (1, 2) or scale.shape[0] != n or not groups or h % groups:
        raise ValueError(
            f"scale must be [N] or [N, G] with N = {n} and G dividing H = {h}; "
            f"got {tuple(scale.shape)}"
        )


def _body(
    student: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    normalize: str,
    need_grad: bool,
) -> Outputs:
    """Return (loss, gradient); the gradient is empty if not needed."""
    outputs: Outputs = _backend(student).hidden_mse(
        student, codes, scale, weight, normalize, need_grad
    )
    return outputs


def _backend(student: Tensor) -> Any:
    """The file that serves these rows, imported when it is first needed."""
    if student.device.type == "cpu" and student.dtype != torch.float64:
        from kdcache_kernels.hidden_mse import _numba

        return _numba
    if student.device.type == "cuda" and student.dtype != torch.float64:
        from kdcache_kernels.hidden_mse import _triton

        return _triton
    from kdcache_kernels.hidden_mse import reference

    return reference


def _fake(student: Tensor, *others: Any) -> Outputs:
    shape = (student.shape[0] if others[-1] else 0, student.shape[1])
    gradient = student.new_empty(shape, dtype=gradient_dtype(student))
    return student.new_empty((), dtype=compute_dtype(student)), gradient


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    keep_gradient(ctx, output, made=inputs[5], dtype=inputs[0].dtype)


def _backward(ctx: Any, loss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    return (input_gradient(ctx, "hidden_mse", loss), *(None,) * 5)


_op = define("hidden_mse", _body, _fake, backward=_backward, setup=_setup)
