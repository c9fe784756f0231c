"""hidden_mse on CPU: both rows pass through the first cache, the gradient is written once."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._launch import arguments, block_count, kernel
from kdcache_kernels._numba import (
    FP32,
    INT8,
    Real,
    array_at,
    dense_rows,
    fast,
    rows_of,
)
from kdcache_kernels._numba_rows import clear, load_any_row, load_row, round_row, row_sum
from kdcache_kernels.hidden_mse.reference import LAYERNORM_EPS

NONE, L2, LAYERNORM = range(3)
NORMALIZE = {"none": NONE, "l2": L2, "layernorm": LAYERNORM}


class _Rows(NamedTuple):
    """Matrices of rows and what is known of each, addresses of which 0 are those of none."""

    student: int
    stride: int
    kind: int
    teacher: int
    teacher_stride: int
    teacher_kind: int
    scale: int
    groups: int
    weight: int
    n: int
    h: int
    mode: int
    gradient: int
    out_stride: int
    out_kind: int
    losses: int
    loss: int
    blocks: int


def hidden_mse(
    student: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    normalize: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of the op."""
    n, h = student.shape
    student, codes, weight = dense_rows(student), dense_rows(codes), weight.contiguous()
    scale = None if scale is None else scale.float().contiguous()
    gradient = empty((n if need_grad else 0, h), gradient_dtype(student), student.device)
    losses, loss = torch.empty(n, dtype=torch.float64), torch.empty(())
    given = _Rows(
        *rows_of(student),
        *rows_of(codes),
        0 if scale is None else scale.data_ptr(),
        scale.shape[1] if scale is not None and scale.dim() == 2 else 1,
        weight.data_ptr(),
        n,
        h,
        NORMALIZE[normalize],
        *rows_of(gradient if need_grad else None),
        losses.data_ptr(),
        loss.data_ptr(),
        block_count(n),
    )
    _rows(given)
    return loss, gradient


@fast()
def _decode(address: int, kind: int, scales: Any, out: Any) -> None:
    """Decode a teacher row; each group of columns of int8 codes has a scale."""
    if kind != INT8:
        load_any_row(address, kind, out)
        return
    width = out.size // scales.size
    for g in range(scales.size):
        codes = array_at(address + g * width, width, np.int8)
        _multiples(codes, scales[g], out[g * width : (g + 1) * width])


@fast()
def _multiples(code: Any, scale: Real, out: Any) -> None:
    for v in range(out.size):  # from 0: an index that might be negative would not vectorise
        out[v] = np.float32(code[v]) * scale


@fast()
def _plain(y: Any, t: Any, factor: Real) -> Real:
    """Replace `t` by factor * (y - t); return the sum of (y - t)^2."""
    total = np.float32(0.0)
    for v in range(y.size):
        e = y[v] - t[v]
        total += e * e
        t[v] = factor * e
    return total


@fast()
def _mean(x: Any) -> Real:
    total = np.float32(0.0)
    for v in range(x.size):
        total += x[v]
    return np.float32(total / np.float32(x.size))


@fast()
def _center_and_size(x: Any, mode: int) -> tuple[Real, Real]:
    """What is subtracted from a row, and what it is divided by, infinity for a zero row."""
    center = _mean(x) if mode == LAYERNORM else np.float32(0.0)
    total = np.float32(0.0)
    for v in range(x.size):
        total += (x[v] - center) * (x[v] - center)
    if mode == LAYERNORM:
        return center, np.float32(np.sqrt(total / x.size + LAYERNORM_EPS))
    return center, np.float32(np.sqrt(total) if total != 0.0 else np.inf)


@fast()
def _difference(
    y: Any, t: Any, center: Real, inverse: Real, t_center: Real, t_inverse: Real
) -> tuple[Real, Real, Real]:
    """Replace `t` by e = norm(y) - norm(t); return sums of e^2, of e norm(y) and of e."""
    squares, along, total = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for v in range(y.size):
        n = (y[v] - center) * inverse
        e = n - (t[v] - t_center) * t_inverse
        squares += e * e
        along += e * n
        total += e
        t[v] = e
    return squares, along, total


@fast()
def _gradient(
    y: Any, e: Any, center: Real, inverse: Real, along: Real, mean: Real, factor: Real
) -> None:
    """Turn e into the gradient by the row `y` that was normalised."""
    for v in range(y.size):
        e[v] = factor * (e[v] - mean - along * ((y[v] - center) * inverse))


@fast()
def _normalized(y: Any, t: Any, mode: int, weight: Real) -> Real:
    """Replace the teacher's row by the gradient; return the sum of squared differences."""
    center, size = _center_and_size(y, mode)
    t_center, t_size = _center_and_size(t, mode)
    inverse = np.float32(1.0) / size
    squares, along, total = _difference(y, t, center, inverse, t_center, np.float32(1.0) / t_size)
    mean = np.float32(0.0)
    if mode == LAYERNORM:
        mean = np.float32(total / y.size)
        along = np.float32(along / y.size)
    factor = np.float32(2.0 * weight / y.size) * inverse
    _gradient(y, t, center, inverse, along, mean, factor)
    return squares


@kernel(_Rows, sums=True)
def _rows(address: int, b: int) -> bool:
    """Fill the gradient, and the weighted losses and their sum."""
    a = arguments(address, _Rows)
    each = array_at(a.losses, a.n, np.float64)
    if b == a.blocks:
        array_at(a.loss, 1, np.float32)[0] = row_sum(each)
        return True
    direct = a.gradient != 0 and a.out_kind == FP32
    decoded = np.empty(a.h if a.kind != FP32 else 0, np.float32)
    scratch = np.empty(0 if direct else a.h, np.float32)
    weights = array_at(a.weight, a.n, np.float32)
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        out = a.gradient + i * a.out_stride
        w = np.float64(weights[i])
        if w == 0.0:
            each[i] = 0.0
            if a.gradient != 0:
                clear(out, a.out_stride)
            continue
        if a.kind == FP32:
            y = array_at(a.student + i * a.stride, a.h, np.float32)
        else:
            y = decoded
            load_row(a.student + i * a.stride, a.kind, y)
        t = array_at(out, a.h, np.float32) if direct else scratch
        scales = array_at(a.scale + 4 * i * a.groups, a.groups, np.float32)
        _decode(a.teacher + i * a.teacher_stride, a.teacher_kind, scales, t)
        if a.mode == NONE:
            squares = _plain(y, t, np.float32(2.0 * w / a.h))
        else:
            squares = _normalized(y, t, a.mode, w)
        each[i] = w * squares / a.h
        if a.gradient != 0 and not direct:
            round_row(t, array_at(out, a.h, np.uint16))
    return True
