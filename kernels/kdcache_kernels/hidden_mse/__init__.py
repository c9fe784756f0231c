"""Mean squared error of student hidden states from cached, quantised teacher hidden states."""

from math import isfinite
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
    mean_weight,
    require_device,
    require_dtype,
    require_matrix,
    require_scale,
    require_shape,
)
from kdcache_kernels._op import define, plain
from kdcache_kernels.hidden_mse import reference

__all__ = ["hidden_mse"]

Normalize: TypeAlias = Literal["none", "l2", "layernorm"]
NORMALIZE = ("none", "l2", "layernorm")
CODES = (torch.int8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32)
EXACT = (*CODES, torch.float64)

# On a CPU a call of a kernel takes some 50 us more than one of torch's ops: for a mean over fewer
# elements that is more than it saves. A kernel decodes codes on its way, so it pays earlier there.
MOST = 3 * 2**16
FEW = {torch.int8: 2**17}
WEIGHTED = 2**15  # with a weight, which takes two ops more
EACH, MEAN = 0, 1  # reductions, as torch's own ops count them


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
            may hold anything, and its gradient is exactly zero.

    Returns:
        A scalar, float32 (float64 for float64 `student`).

    Raises:
        ValueError: wrong shape, device or `normalize`; int8 codes without `scale` or the reverse;
            a gradient asked for `weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward; but where torch's own ops run, there is one: without
            `normalize`, on a CPU, of up to some 200,000 elements for the default weight and 30,000
            for others.
    """
    _check(student, codes, scale, normalize)
    if weight is None and normalize == "none" and _few(student, FEW.get(codes.dtype, MOST)):
        return _errors(student, codes, scale, MEAN)
    if weight is None and not student.is_cpu:
        each = mean_weight(student)  # rows need not wait for their weights then
    else:
        each = checked_weight(weight, student, "student")
    if normalize == "none" and _few(student, WEIGHTED) and plain((student, codes, scale, weight)):
        rows = _errors(student, codes, scale, EACH).mean(-1)
        loss = torch.dot(each.reshape(-1), rows.reshape(-1) if rows.dim() > 1 else rows)
        # A row of weight zero may hold anything; it counts for nothing only where it is finite.
        if isfinite(loss.item()):
            return loss
    loss, _ = _op(
        student,
        constant(codes),
        None if scale is None else constant(scale),
        each,
        normalize,
        torch.is_grad_enabled() and student.requires_grad,
    )
    return loss


def _few(student: Tensor, most: int) -> bool:
    return student.is_cpu and 0 < student.numel() < most


def _errors(student: Tensor, codes: Tensor, scale: Tensor | None, reduction: int) -> Tensor:
    """Squared errors by torch's own op, whose wrapper would cost what the checks do."""
    dtype = compute_dtype(student)
    teacher = codes if codes.dtype == dtype else reference.decode(codes, scale, dtype)
    exact = student if student.dtype == dtype else student.to(dtype)
    # torch's own stub has a word for the reduction, the op a number.
    return torch._C._nn.mse_loss(exact, constant(teacher), reduction)  # type: ignore[arg-type]


def _check(student: Tensor, codes: Tensor, scale: Tensor | None, normalize: str) -> None:
    if not student.dim() == codes.dim() == 3:
        require_matrix("student", student)
    require_dtype("student", student, FLOATS)
    require_shape("codes", codes, student.shape)
    require_dtype("codes", codes, EXACT if student.dtype == torch.float64 else CODES)
    require_device("codes", codes, student, "student")
    if student.shape[-1] == 0:
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


kernel = dispatched(reference.hidden_mse)


def _body(
    student: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    normalize: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    if student.dim() == 2:
        return kernel(student, codes, scale, weight, normalize, need_grad)
    loss, gradient = kernel(
        student.flatten(0, 1),
        codes.flatten(0, 1),
        None if scale is None else scale.flatten(0, 1),
        weight.flatten(),
        normalize,
        need_grad,
    )
    # Detached: what a backward pass scales in place must not be a view made in a forward pass.
    return loss, gradient.view(student.shape).detach() if need_grad else gradient


def _fake(student: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    shape = student.shape if others[-1] else (0, student.shape[-1])
    gradient = student.new_empty(shape, dtype=gradient_dtype(student))
    return student.new_empty((), dtype=compute_dtype(student)), gradient


_op = define("hidden_mse", _body, _fake, leaves=1)
