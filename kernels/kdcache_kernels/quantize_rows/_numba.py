"""quantize_rows on CPU: a row stays in the first cache for its largest magnitudes and its codes."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._launch import arguments, block_count, kernel
from kdcache_kernels._numba import (
    Real,
    array_at,
    dense_rows,
    exact,
    fast,
    rows_of,
)
from kdcache_kernels._numba_rows import load_row
from kdcache_kernels.quantize_rows.reference import require_finite


class _Rows(NamedTuple):
    """A matrix of rows and, as addresses, what there will be of each."""

    rows: int
    stride: int
    kind: int
    n: int
    h: int
    group: int
    codes: int
    scale: int
    finite: int
    blocks: int


def quantize_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """As `reference.quantize_rows`."""
    n, h = x.shape
    x = dense_rows(x)
    codes = torch.empty(n, h, dtype=torch.int8)
    scale = torch.empty(n, h // group, dtype=torch.float16)
    finite = torch.empty(n, dtype=torch.bool)
    made = codes.data_ptr(), scale.data_ptr(), finite.data_ptr()
    _rows(_Rows(*rows_of(x), n, h, group, *made, block_count(n)))
    if not finite.all():
        require_finite(scale)
    return codes, scale


@fast()
def _top(x: Any) -> Real:
    """Largest magnitude; NaN if there is one: as whole numbers, magnitudes have one order."""
    raw, top = x.view(np.uint32), np.uint32(0)
    for v in range(raw.size):
        top = max(top, raw[v] & np.uint32(0x7FFFFFFF))
    return np.uint32(top).view(np.float32)


INFINITY = 0x7C00  # in bits of a float16, as all that is said of halves here


@exact()
def _nearest_half(x: Real) -> Real:
    """Bits of the float16 nearest to float32 `x` >= 0, ties to even."""
    raw = np.float32(x).view(np.uint32)
    if raw >= np.uint32(0x47800000):  # 2^16 and beyond, infinity, NaN
        return np.uint16(INFINITY)
    if raw < np.uint32(0x38800000):  # below 2^-14, halves are multiples of the last digit of 0.5
        return np.uint16(np.float32(np.float32(x) + np.float32(0.5)).view(np.uint32) & 0xFFFF)
    even = (raw >> np.uint32(13)) & np.uint32(1)
    return np.uint16((raw - np.uint32(112 << 23) + np.uint32(0xFFF) + even) >> np.uint32(13))


@exact()
def _of_half(half: Real) -> Real:
    """The float32 of a finite positive float16: its exponent is 112 short, or it is subnormal."""
    shifted = np.uint32(np.uint32(half) << np.uint32(13)).view(np.float32)
    return np.float32(shifted * np.float32(5.192296858534828e33))  # 2^112


@exact()
def _half_scale(top: Real) -> Real:
    """Bits of the scale of a group whose largest magnitude is `top`; see `float16_scale`."""
    half = _nearest_half(np.float32(top) / np.float32(127.0))
    clips = half < INFINITY and top > np.float32(127.5) * _of_half(half)
    return np.uint16(half + 1) if clips else half


@exact()
def _round(x: Any, step: Real, codes: Any) -> None:
    """Multiples of `step` nearest to `x`, ties to even, at most 127 of them either way."""
    low, high = np.float32(-127.0), np.float32(127.0)
    for v in range(x.size):
        codes[v] = np.int8(min(max(np.rint(x[v] / step), low), high))


@kernel(_Rows)
def _rows(address: int, b: int) -> bool:
    """Fill codes, scales (as bits) and whether each row's are finite."""
    a = arguments(address, _Rows)
    finite = array_at(a.finite, a.n, np.bool_)
    x = np.empty(a.h, np.float32)
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        load_row(a.rows + i * a.stride, a.kind, x)
        scales = array_at(a.scale + i * (a.h // a.group) * 2, a.h // a.group, np.uint16)
        whole = True
        for g in range(scales.size):
            part = x[g * a.group : (g + 1) * a.group]
            scales[g] = _half_scale(_top(part))
            whole = whole and scales[g] < INFINITY
            step = _of_half(scales[g]) if scales[g] else np.float32(1.0)
            _round(part, step, array_at(a.codes + i * a.h + g * a.group, a.group, np.int8))
        finite[i] = whole
    return True
