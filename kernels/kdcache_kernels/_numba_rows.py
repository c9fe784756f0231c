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
    fma,
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


# Here and below only "contract", one instruction for a * b + c: reassociation would undo what
# adds and subtracts a magic number, which rounds.
@inlined(fastmath={"contract"})
def _power(r: Real, t: Real) -> Real:
    """2^(r + n), |r| <= 1/2, of the whole number n that the last bits of `t` are, 127 more."""
    p = np.float32(1.3264724636e-3)
    p = p * r + np.float32(9.6715129521e-3)
    p = p * r + np.float32(5.5507337516e-2)
    p = p * r + np.float32(2.4022242079e-1)
    p = p * r + np.float32(6.9314697759e-1)
    p = p * r + np.float32(1.0)
    return p * np.uint32(np.float32(t).view(np.uint32) << np.uint32(23)).view(np.float32)


@inlined(fastmath={"contract"})
def exp2_32(x: Real) -> Real:
    """2^x for x <= 0 in float32, within 2 ulp, vectorisable; 0 below -126.5, NaN for NaN."""
    magic = np.float32(12582912.0 + 127.0)  # adding 1.5 * 2^23 rounds to a whole number
    x = np.float32(-127.0) if x < np.float32(-127.0) else x
    t = x + magic
    r = x - (t - magic)
    return _power(r, t)


# 1 / i! from 12 down to 0: on |r| <= log(2) / 2 the series is exact to 2e-16.
@inlined(fastmath={"contract"})
def exp_64(x: Real) -> Real:
    """e^x for x <= 0 in float64, within 4 ulp, vectorisable; 0 below -709, NaN for NaN."""
    magic = 6755399441055744.0 + 1023.0  # adding 1.5 * 2^52 rounds to a whole number
    x = -709.4 if x < -709.4 else x
    t = x * 1.4426950408889634 + magic
    n = t - magic
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    p = 2.08767569878681e-09
    p = p * r + 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * np.uint64(np.float64(t).view(np.uint64) << np.uint64(52)).view(np.float64)


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
def exp_part(x: Any, top: Real, factor: Real) -> Real:
    """Replace a short `x` by exp((x - top) * factor); return its sum.

    In place on purpose: two arrays that may overlap fall back to a scalar loop, 5 times slower.
    """
    total, scale = np.float32(0.0), np.float32(factor * LOG2_E)
    for v in range(x.size):
        e = exp2_32((x[v] - top) * scale)
        x[v] = e
        total += e
    return total


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
        terms[c] = exp_64((x[c] - shift) * scale)
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


@inlined(fastmath={"contract"})
def exp2_below(x: Real, scale: Real, whole: Real, low: Real) -> Real:
    """2^(x scale - whole) of a power of at most 1/2, within 2.2 ulp; 0 from `low` on, NaN for NaN.

    As `exp2_32`, in two operations less: a whole number more or less is only another exponent.
    """
    magic = np.float32(12582912.0 + 127.0) - whole
    x = low if x < low else x
    t = fma(x, scale, magic)
    r = fma(x, scale, magic - t)
    return _power(r, t)


@fast()
def _powers(x: Any, scale: Real, whole: Real, square: bool) -> tuple[Real, Real]:
    """Replace a short `x` by 2^(x scale - whole); return its sum, and that of its squares."""
    total, squares = np.float32(0.0), np.float32(0.0)
    low = np.float32((whole - np.float32(127.0)) / scale)
    for v in range(x.size):
        e = exp2_below(x[v], scale, whole, low)
        x[v] = e
        total += e
    if square:
        for v in range(x.size):
            squares += x[v] * x[v]
    return total, squares


FAR = 2.0**20  # a power from which on whole numbers beside `exp2_below`'s magic one are not exact
FLAT = 1.0 / 8.0  # a scale by which exponentials are so alike that one of 1 has to be exactly that


@fast()
def exponentials(
    x: Any, begins: bool, scale: Real, square: bool, sums: Any, ahead: int, ahead2: int
) -> None:
    """Replace a piece `x` of a row by exp((x - base) * scale), base near the row's top so far.

    `sums`, [4] in float64, are brought up to date, or made by a piece that `begins` the row: the
    base, the sum of exp((x - base) * scale), with `square` the sum of its terms' squares, and the
    top. So one pass does for maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867).

    Memory would be idle meanwhile: as many bytes are asked for at two addresses, which may be any.
    """
    high, by = row_max(x), np.float32(scale * LOG2_E)
    larger = begins or not high <= sums[3]  # or NaN
    top = np.float64(high if larger else sums[3])
    power = top * by
    near = abs(power) < FAR and scale > FLAT
    whole = np.rint(power) if near else 0.0
    base = top - (power - whole) / (scale * LOG2_E) if near else top
    if larger:
        shrink = 0.0 if begins or sums[0] == -np.inf else np.exp((sums[0] - base) * scale)
        sums[0], sums[3] = base, top
        sums[1] = 0.0 if begins else sums[1] * shrink
        sums[2] = 0.0 if begins else sums[2] * shrink * shrink
    if top == -np.inf:
        fill(x, np.float32(0.0))
        return
    if not near:
        for v in range(x.size):
            x[v] = (x[v] - np.float32(top)) * by
        by = np.float32(1.0)
    for start in range(0, x.size, CHUNK):
        for line in range(0, 4 * CHUNK, LINE):
            prefetch(ahead + 4 * start + line)
            prefetch(ahead2 + 4 * start + line)
        total, squares = _powers(x[start : start + CHUNK], by, np.float32(whole), square)
        sums[1] += total
        sums[2] += squares
