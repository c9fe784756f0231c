"""hidden_mse on CPU: both rows pass through the first cache, the gradient is written once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._numba import (
    INT8,
    Real,
    bits,
    block_count,
    fast,
    gradient_rows,
    load_row,
    prange,
    round_row,
)
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
    flat, stride, kind = bits(student)
    gradient = empty((n if need_grad else 0, h), gradient_dtype(student), student.device)
    out32, out16, _ = gradient_rows(gradient if need_grad else None)
    teacher, teacher_stride, teacher_kind = bits(codes)
    scales = torch.ones(n, 1) if scale is None else scale.float().reshape(n, -1).contiguous()
    losses = torch.zeros(n, dtype=torch.float64)
    _all_rows(
        flat,
        stride,
        kind,
        teacher,
        teacher_stride,
        teacher_kind,
        scales.numpy(),
        weight.contiguous().numpy(),
        h,
        NORMALIZE[normalize],
        need_grad,
        out32,
        out16,
        losses.numpy(),
        block_count(n),
    )
    return losses.sum().float(), gradient


@fast()
def _decode(source: Any, start: int, kind: int, scales: Any, out: Any) -> None:
    """Decode a teacher row; each group of columns of int8 codes has a scale."""
    if kind != INT8:
        load_row(source, start, kind, out)
        return
    code = source[start : start + out.size].view(np.int8)
    width = out.size // scales.size
    for g in range(scales.size):
        part = slice(g * width, (g + 1) * width)
        _multiples(code[part], scales[g], out[part])


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


@fast(parallel=True)
def _all_rows(
    flat: Any,
    stride: int,
    kind: int,
    teacher: Any,
    teacher_stride: int,
    teacher_kind: int,
    scales: Any,
    weight: Any,
    h: int,
    mode: int,
    need_grad: bool,
    out32: Any,
    out16: Any,
    losses: Any,
    blocks: int,
) -> None:
    """Fill gradient and weighted losses."""
    n = weight.size
    for b in prange(blocks):
        decoded = np.empty(h if kind != 0 else 0, np.float32)
        scratch = np.empty(0 if out32.size else h, np.float32)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            w = np.float64(weight[i])
            if w == 0.0:
                if need_grad:
                    out32[i * h : (i + 1) * h] = np.float32(0.0)
                    out16[i * h : (i + 1) * h] = np.uint16(0)
                continue
            if kind == 0:
                y = flat[i * stride : i * stride + 4 * h].view(np.float32)
            else:
                y = decoded
                load_row(flat, i * stride, kind, y)
            t = out32[i * h : (i + 1) * h] if out32.size else scratch
            _decode(teacher, i * teacher_stride, teacher_kind, scales[i], t)
            if mode == NONE:
                squares = _plain(y, t, np.float32(2.0 * w / h))
            else:
                squares = _normalized(y, t, mode, w)
            losses[i] = w * squares / h
            if out16.size:
                round_row(t, out16[i * h : (i + 1) * h])
