"""Mean squared errors between every layer of a student and every layer of a teacher."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcache_kernels._autograd import once
from kdcache_kernels._backends import dispatched
from kdcache_kernels._checks import (
    FLOATS,
    checked_weight,
    constant,
    gradient_dtype,
    require_device,
    require_dtype,
    require_matrix,
    require_scale,
    require_shape,
)
from kdcache_kernels._op import define
from kdcache_kernels.hidden_mse import CODES, EXACT
from kdcache_kernels.layer_costs import reference

__all__ = ["layer_costs"]


def layer_costs(
    student: Sequence[Tensor],
    codes: Sequence[Tensor],
    scale: Sequence[Tensor] | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Sums over rows of `w_i mean_H (student_m,i - teacher_l,i)^2`, of every m and l.

    Every layer is read once for all costs, and once more for the gradient, which is made of what
    the costs are multiplied by: that of `(plan * layer_costs(...)).sum()` skips pairs between
    which nothing flows. Only `student` gets a gradient; the teacher's tensors are constants even
    where they require one.

    Args:
        student: M hidden states, each [N, H], of one dtype: float32, float16, bfloat16 or float64;
            rows at any stride.
        codes: L of the teacher's, each [N, H], of one dtype: int8 with `scale`, or float8_e4m3fn,
            float16, bfloat16 or float32 without; float64 too for a float64 `student`.
        scale: of int8 codes, one for each of them, [N] or [N, G], floating: column h is multiplied
            by `scale[:, h // (H / G)]`. G divides H.
        weight: w, [N], floating: mask and mean in one tensor. Default 1/N. A row of weight zero is
            not read, whatever it holds, and its gradient is exactly zero.

    Returns:
        [M, L] float32 (float64 for float64 `student`).

    Raises:
        ValueError: no layers; wrong shape or device; int8 codes without `scale` or the reverse; a
            gradient asked for `weight`.
        TypeError: wrong dtype, or several on one side.
        RuntimeError: double backward.

    Source: the costs of a transport between layers in BERT-EMD, Li et al. 2020, arXiv:2010.06133.
    """
    scales = [] if scale is None else [constant(x) for x in scale]
    _check(student, codes, scales)
    checked = checked_weight(weight, student[0], "student")
    costs: Tensor = _op(checked, list(student), [constant(x) for x in codes], scales)
    return costs


def _check(student: Sequence[Tensor], codes: Sequence[Tensor], scale: Sequence[Tensor]) -> None:
    if not student or not codes:
        raise ValueError(
            f"layer_costs compares layers; got {len(student)} of the student and {len(codes)} of "
            "the teacher: give one of each at least"
        )
    first = student[0]
    require_matrix("student[0]", first)
    if first.shape[1] == 0:
        raise ValueError(f"student must have at least one column; got {tuple(first.shape)}")
    require_dtype("student[0]", first, FLOATS)
    require_dtype("codes[0]", codes[0], EXACT if first.dtype == torch.float64 else CODES)
    for name, layers in (("student", student), ("codes", codes)):
        for i, x in enumerate(layers):
            require_shape(f"{name}[{i}]", x, tuple(first.shape))
            require_dtype(f"{name}[{i}]", x, (layers[0].dtype,))
            require_device(f"{name}[{i}]", x, first, "student[0]")
    if len(scale) != (len(codes) if codes[0].dtype == torch.int8 else 0):
        raise ValueError(
            f"int8 codes need a scale for each layer, float codes take none; got {len(codes)} "
            f"layers of {codes[0].dtype} and {len(scale)} scales"
        )
    for i, x in enumerate(scale):
        require_dtype(f"scale[{i}]", x, FLOATS)
        require_device(f"scale[{i}]", x, first, "student[0]")
        require_scale(f"scale[{i}]", x, codes[i])
        require_shape(f"scale[{i}]", x, tuple(scale[0].shape))


def _fake(
    weight: Tensor, student: list[Tensor], codes: list[Tensor], scale: list[Tensor]
) -> Tensor:
    return weight.new_empty((len(student), len(codes)))


def _fake_gradient(
    weight: Tensor,
    student: list[Tensor],
    codes: list[Tensor],
    scale: list[Tensor],
    flow: Tensor,
) -> list[Tensor]:
    return [x.new_empty(x.shape, dtype=gradient_dtype(x)) for x in student]


_gradient = define(
    "layer_costs_gradient", dispatched(reference.layer_costs_gradient), _fake_gradient
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, *sides = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, *(x for side in sides for x in side))
    ctx.layers = [len(side) for side in sides]


def _backward(ctx: Any, flow: Tensor | None) -> tuple[Any, ...]:
    """What a gradient is made of is known now only: it is the op's own backward that runs."""
    weight, *layers = ctx.saved_tensors
    ours, theirs = ctx.layers[:2]
    student, codes, scale = layers[:ours], layers[ours : ours + theirs], layers[ours + theirs :]
    found: list[Tensor | None] = [None] * ours
    if flow is not None:
        with torch.no_grad():
            made = _gradient(weight, student, codes, scale, flow)
            made = [x.to(s.dtype) for x, s in zip(made, student, strict=True)]
        found = [once("layer_costs", x) for x in made]
    return None, found, *([None] * count for count in ctx.layers[1:])


_op = define(
    "layer_costs", dispatched(reference.layer_costs), _fake, differentiate=(_setup, _backward)
)
