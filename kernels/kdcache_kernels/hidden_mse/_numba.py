"""hidden_mse on CPU: both rows decoded to float32 in cache, the gradient written once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._numba import (
    Real,
    bits,
    fast,
    get_num_threads,
    gradient_buffer,
    load_row,
    prange,
    store_row,
    zero_row,
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
    gradient, out32, out16 = gradient_buffer(n if need_grad else 0, h, gradient_dtype(student))
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
        max(1, min(n, 4 * get_num_threads())),
    )
    return losses.sum().float(), gradient


@fast()
def _rescale(x: Any, scales: Any) -> None:
    """Multiply each group of columns by its scale."""
    width = x.size // scales.size
    for g in range(scales.size):
        for v in range(g * width, (g + 1) * width):
            x[v] *= scales[g]


@fast()
def _mean_product(x: Any, y: Any) -> Real:
    total = np.float32(0.0)
    for v in range(x.size):
        total += x[v] * y[v]
    return total / x.size


@fast()
def _center(x: Any) -> None:
    total = np.float32(0.0)
    for v in range(x.size):
        total += x[v]
    mean = np.float32(total / x.size)
    for v in range(x.size):
        x[v] -= mean


@fast()
def _normalize(x: Any, mode: int) -> Real:
    """Normalise a row in place; return what it was divided by, infinity for a zero row."""
    if mode == NONE:
        return 1.0
    if mode == LAYERNORM:
        _center(x)
        size = np.sqrt(_mean_product(x, x) + LAYERNORM_EPS)
    else:
        size = np.sqrt(_mean_product(x, x) * x.size)
        size = size if size != 0.0 else np.inf
    inverse = np.float32(1.0 / size)
    for v in range(x.size):
        x[v] *= inverse
    return size


@fast()
def _gradient(y: Any, d: Any, mode: int, factor: Real) -> None:
    """Turn d = y - teacher into the gradient by the row that was normalised to `y`."""
    if mode == LAYERNORM:
        along = np.float32(_mean_product(y, d))
        _center(d)
    else:
        along = np.float32(_mean_product(y, d) * y.size if mode == L2 else 0.0)
    f = np.float32(factor)
    for v in range(y.size):
        d[v] = f * (d[v] - along * y[v])


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
        y = np.empty(h, np.float32)
        d = np.empty(h, np.float32)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            w = np.float64(weight[i])
            if w == 0.0:
                if need_grad:
                    zero_row(out32, out16, i, h)
                continue
            load_row(flat, i * stride, kind, y)
            load_row(teacher, i * teacher_stride, teacher_kind, d)
            _rescale(d, scales[i])
            size = _normalize(y, mode)
            _normalize(d, mode)
            for v in range(h):
                d[v] = y[v] - d[v]
            losses[i] = w * _mean_product(d, d)
            if need_grad:
                _gradient(y, d, mode, 2.0 * w / (h * size))
                store_row(d, out32, out16, i)
