"""Rows of the Numba kernels: decoded to float32, rounded, exponentials, maxima and sums."""

from typing import Any

import numpy as np
import torch

from kdcache_kernels._numba import (
    BF16,
    FP8,
    FP32,
    INT8,
    Real,
    array_at,
    fast,
    inlined,
    prefetch,
)

__all__ = [
    "PIECE",
    "clear",
    "copy",
    "exponentials",
    "fill",
    "load_any_row",
    "load_row",
    "log_add",
    "log_sum",
    "pieces",
    "round_row",
    "row_sum",
]

E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()


@fast()
def clear(address: int, size: int) -> None:
    """Set `size` bytes to zero."""
    out = array_at(address, size, np.uint8)
    for v in range(size):
        out[v] = np.uint8(0)


# As `out[:] = x` and `out[:] = value`, without the error of shapes that do not match, whose words
# take seconds to compile. Under `parallel` those leave an array from an address as it is, besides.
@fast()
def copy(x: Any, out: Any) -> None:
    """Write a row over another of its size."""
    for v in range(out.size):
        out[v] = x[v]


@fast()
def fill(out: Any, value: Real) -> None:
    """Write one value over a row."""
    for v in range(out.size):
        out[v] = value


LOG2_E = 1.4426950408889634


# Only "contract", one instruction for a * b + c: reassociation would undo `t - magic`.
@inlined(fastmath={"contract"})
def exp2_32(x: Real) -> Real:
    """2^x for x <= 0 in float32, within 2 ulp, vectorisable; 0 below -126.5, NaN for NaN."""
    magic = np.float32(12582912.0 + 127.0)  # adding 1.5 * 2^23 rounds to a whole number
    x = np.float32(-127.0) if x < np.float32(-127.0) else x
    t = x + magic
    r = x - (t - magic)
    p = np.float32(1.3264724636e-3)
    p = p * r + np.float32(9.6715129521e-3)
    p = p * r + np.float32(5.5507337516e-2)
    p = p * r + np.float32(2.4022242079e-1)
    p = p * r + np.float32(6.9314697759e-1)
    p = p * r + np.float32(1.0)
    return p * np.uint32(np.float32(t).view(np.uint32) << np.uint32(23)).view(np.float32)


@fast()
def load_row(address: int, kind: int, out: Any) -> None:
    """Decode the row of floats at an address to float32 `out`."""
    raw = out.view(np.uint32)
    n = out.size
    if kind == FP32:
        words = array_at(address, n, np.uint32)
        for v in range(n):
            raw[v] = words[v]
    elif kind == BF16:
        half = array_at(address, n, np.uint16)
        for v in range(n):
            raw[v] = np.uint32(half[v]) << np.uint32(16)
    else:
        _load_fp16(array_at(address, n, np.uint16), out)


@fast()
def load_any_row(address: int, kind: int, out: Any) -> None:
    """As `load_row`, and of codes too, whose loops kernels without codes need not compile."""
    n = out.size
    if kind == INT8:
        whole = array_at(address, n, np.int8)
        for v in range(n):
            out[v] = whole[v]
    elif kind == FP8:
        code = array_at(address, n, np.uint8)
        for v in range(n):
            out[v] = E4M3[code[v]]
    else:
        load_row(address, kind, out)


@fast()
def _load_fp16(row: Any, out: Any) -> None:
    for v in range(out.size):
        h = np.uint32(row[v])
        # Shifted into place the exponent is 112 short; the product also normalises subnormals.
        x = np.uint32((h & 0x7FFF) << 13).view(np.float32)
        u = np.float32(x * np.float32(5.192296858534828e33)).view(np.uint32)
        special = np.uint32(0x7F800000 if (h & 0x7C00) == 0x7C00 else 0)  # inf and NaN
        out[v] = np.uint32(u | special | ((h & 0x8000) << 16)).view(np.float32)


@fast()
def round_bf16(x: Real) -> Real:
    """Bits of the bfloat16 nearest to float32 `x`, ties to even."""
    u = np.float32(x).view(np.uint32)
    if x != x:
        return np.uint16(0x7FC0)
    return np.uint16((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> 16)


@fast()
def round_row(x: Any, out: Any) -> None:
    """Write a float32 row as bits of bfloat16."""
    for v in range(x.size):
        out[v] = round_bf16(x[v])


@fast()
def row_max(x: Any) -> Real:
    """Largest element of a float32 row; NaN if it holds a positive NaN.

    Compared as integers, which vectorises without assuming no NaN. Those of negative floats are in
    the wrong order, which matters only to a row that holds nothing else.
    """
    raw = x.view(np.int32)
    top = np.int32(-0x80000000)
    for v in range(raw.size):
        top = max(top, raw[v])
    if top < 0:
        low = np.int32(-1)
        for v in range(raw.size):
            low = min(low, raw[v])
        top = low
    return np.int32(top).view(np.float32)


@fast()
def row_sum(x: Any) -> Real:
    """Sum of a row, in its own precision."""
    total = x.dtype.type(0)
    for v in range(x.size):
        total += x[v]
    return total


@fast()
def exp_part(x: Any, top: Real, factor: Real, square: bool) -> tuple[Real, Real]:
    """Replace a short `x` by exp((x - top) * factor); return its sum, and that of its squares.

    In place on purpose: two arrays that may overlap fall back to a scalar loop, 5 times slower.
    """
    total, squares = np.float32(0.0), np.float32(0.0)
    scale = np.float32(factor * LOG2_E)
    for v in range(x.size):
        e = exp2_32((x[v] - top) * scale)
        x[v] = e
        total += e
    if square:
        for v in range(x.size):
            squares += x[v] * x[v]
    return total, squares


@fast()
def log_sum(x: Any, scale: Real, terms: Any) -> tuple[Real, Real]:
    """log sum exp(x * scale) of a short float64 row, -inf if all of it is; and a base for `terms`.

    These become exp(x * scale - base), so that nobody needs the exponentials again.
    """
    top = -np.inf
    for c in range(x.size):
        top = x[c] if x[c] > top else top
    shift = 0.0 if top == -np.inf else top
    total = 0.0
    for c in range(x.size):
        terms[c] = np.exp((x[c] - shift) * scale)
        total += terms[c]
    return shift * scale + np.log(total), shift * scale


@fast()
def log_add(a: Real, b: Real) -> Real:
    """log(exp(a) + exp(b))."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -np.inf else high + np.log1p(np.exp(low - high))


PIECE = 4096  # elements; 16 KB stay in the first cache
CHUNK = 128  # elements between which memory is asked for what comes next
LINE = 64  # bytes


@fast()
def pieces(n: int) -> int:
    """How many pieces a row of `n` elements has."""
    return (n + PIECE - 1) // PIECE


@fast()
def exponentials(
    x: Any, begins: bool, scale: Real, square: bool, sums: Any, ahead: int, ahead2: int
) -> None:
    """Replace a piece `x` of a row by exp((x - top) * scale), top the row's largest element so far.

    `sums`, [3] in float64, are brought up to date, or made by a piece that `begins` the row: the
    top, the sum of exp((x - top) * scale), and with `square` the sum of its terms' squares. So one
    pass does for maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867).

    Memory would be idle meanwhile: as many bytes are asked for at two addresses, which may be any.
    """
    high = row_max(x)
    top = np.float32(-np.inf if begins else sums[0])
    if begins or not high <= top:  # larger, or NaN
        shrink = np.exp(np.float64(top - high) * scale) if top != -np.inf else 0.0
        sums[1] = 0.0 if begins else sums[1] * shrink
        sums[2] = 0.0 if begins else sums[2] * shrink * shrink
        sums[0], top = high, high
    if top == -np.inf:
        fill(x, np.float32(0.0))
        return
    factor = np.float32(scale)
    for start in range(0, x.size, CHUNK):
        for line in range(0, 4 * CHUNK, LINE):
            prefetch(ahead + 4 * start + line)
            prefetch(ahead2 + 4 * start + line)
        total, squares = exp_part(x[start : start + CHUNK], top, factor, square)
        sums[1] += total
        sums[2] += squares
