"""hidden_mse on CPU: both rows pass through the first cache, the gradient is written once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._numba import (
    FP32,
    INT8,
    Real,
    array_at,
    block_count,
    dense_rows,
    fast,
    parallel,
    prange,
    rows_of,
)
from kdcache_kernels._numba_rows import clear, load_any_row, load_row, round_row, row_sum
from kdcache_kernels.hidden_mse.reference import LAYERNORM_EPS

NONE, L2, LAYERNORM = range(3)
NORMALIZE = {"none": NONE, "l2": L2, "layernorm": LAYERNORM}


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
    loss = torch.empty((), dtype=torch.float32)
    _all_rows(
        *rows_of(student),
        *rows_of(codes),
        0 if scale is None else scale.data_ptr(),
        scale.shape[1] if scale is not None and scale.dim() == 2 else 1,
        weight.data_ptr(),
        n,
        h,
        NORMALIZE[normalize],
        *rows_of(gradient if need_grad else None),
        loss.data_ptr(),
        block_count(n),
    )
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


@parallel()
def _all_rows(
    student: int,
    stride: int,
    kind: int,
    teacher: int,
    teacher_stride: int,
    teacher_kind: int,
    scale: int,
    groups: int,
    weight: int,
    n: int,
    h: int,
    mode: int,
    gradient: int,
    out_stride: int,
    out_kind: int,
    loss: int,
    blocks: int,
) -> None:
    """Fill the gradient and the sum of weighted losses; small arrays come as addresses too."""
    each = np.empty(n, np.float64)
    for b in prange(blocks):
        direct = gradient != 0 and out_kind == FP32
        decoded = np.empty(h if kind != FP32 else 0, np.float32)
        scratch = np.empty(0 if direct else h, np.float32)
        weights = array_at(weight, n, np.float32)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            out = gradient + i * out_stride
            w = np.float64(weights[i])
            if w == 0.0:
                each[i] = 0.0
                if gradient != 0:
                    clear(out, out_stride)
                continue
            if kind == FP32:
                y = array_at(student + i * stride, h, np.float32)
            else:
                y = decoded
                load_row(student + i * stride, kind, y)
            t = array_at(out, h, np.float32) if direct else scratch
            scales = array_at(scale + 4 * i * groups, groups, np.float32)
            _decode(teacher + i * teacher_stride, teacher_kind, scales, t)
            if mode == NONE:
                squares = _plain(y, t, np.float32(2.0 * w / h))
            else:
                squares = _normalized(y, t, mode, w)
            each[i] = w * squares / h
            if gradient != 0 and not direct:
                round_row(t, array_at(out, h, np.uint16))
    array_at(loss, 1, np.float32)[0] = row_sum(each)
