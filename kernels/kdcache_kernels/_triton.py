"""Pieces shared by the Triton kernels: rows of any stride, 16 bytes a thread; tiles of short rows.

A row of 30522 elements starts on a 16-byte boundary in one of four or eight cases only, and loads
that may start anywhere are two bytes wide. So a row is read from the boundary before it to the one
after it, its elements numbered from that boundary (o = v + shift), and what belongs to its
neighbours is masked in registers. Writing has to be exact: whole pieces of `ALIGN` elements are
stored 16 bytes a thread, the few elements before and after them (the edges) one by one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

__all__ = [
    "PIECE_BYTES",
    "Rows",
    "Tile",
    "aligned_rows",
    "at_temperature_1",
    "edge_offsets",
    "exponentials",
    "finite_or_zero",
    "grouped_columns",
    "jit",
    "js_terms",
    "load_tile",
    "log1p",
    "max_registers",
    "on_device",
    "out_start",
    "power_of",
    "power_of_2",
    "row_start",
    "rows_of",
    "same_alignment",
    "store_tile",
    "tile",
    "tl",
]

LOG2_E = tl.constexpr(1.4426950408889634)
PIECE_BYTES = 16  # the widest load and store of a thread


class Rows(NamedTuple):
    """Where the rows of a matrix lie: row i starts `head + i * stride` elements after `base`.

    `base` starts on a 16-byte boundary wherever its storage allows; `align` is then the number of
    elements in 16 bytes, else 1.
    """

    base: Tensor
    head: int
    stride: int
    align: int


def jit(kernel: Callable[..., Any]) -> Any:
    """`triton.jit`, with a type."""
    return triton.jit(kernel)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def aligned_rows(x: Tensor) -> Rows:
    """Describe the rows of `x` [N, C], whose columns are contiguous."""
    size = x.element_size()
    head = x.data_ptr() % PIECE_BYTES // size
    if head > x.storage_offset():  # memory of others, off the boundary from its first byte
        return Rows(x, 0, x.stride(0), 1)
    base = x.as_strided((1,), (1,), x.storage_offset() - head) if head else x
    return Rows(base, head, x.stride(0), PIECE_BYTES // size)


def same_alignment(a: Rows, b: Rows, align: int) -> bool:
    """Whether row i of both starts equally far from a boundary of `align` elements, for every i."""
    return (a.head - b.head) % align == 0 and (a.stride - b.stride) % align == 0


def max_registers(num_warps: int) -> int:
    """All that a thread can have: asked for, or the assembler spills to save some."""
    return min(255, 65536 // (32 * num_warps))


class Tile(NamedTuple):
    """Rows that one program holds, `rows` of `groups` times `width` columns, and its warps."""

    rows: int
    groups: int
    width: int
    num_warps: int


def tile(groups: int, width: int) -> Tile:
    """Hold as many rows of `groups` times `width` columns as keep four warps busy."""
    shape = power_of_2(groups), power_of_2(width)
    block = shape[0] * shape[1]
    return Tile(max(1, 4096 // block), *shape, min(16, max(4, block // 1024)))


def rows_of(x: Tensor) -> Tensor:
    """`x` [N, C], copied only if its columns are not contiguous."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def power_of(temperature: float) -> int:
    """1, 2 or 4 where exp(x) is that power of exp(x / T), 0 for another T."""
    return int(temperature) if temperature in (1, 2, 4) else 0


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Make the device of `x` the one that kernels are launched on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@jit
def row_start(row: tl.tensor, stride: tl.tensor, head: tl.tensor, ALIGN: tl.constexpr) -> tl.tensor:
    """Element of the boundary at or before a row, and how far behind it the row starts."""
    at = row.to(tl.int64) * stride + head  # int64: N * V can pass 2**31
    start = at // ALIGN * ALIGN
    return start, (at - start).to(tl.int32)


@jit
def out_start(
    row: tl.tensor,
    stride: tl.tensor,
    head: tl.tensor,
    shift: tl.tensor,
    ALIGN: tl.constexpr,
    SAME: tl.constexpr,
) -> tl.tensor:
    """Where element 0 lies in a row of the output, so that elements keep their numbers."""
    start = row.to(tl.int64) * stride + head - shift
    if SAME:
        start = start // ALIGN * ALIGN  # exact: it tells the compiler what it divides
    return start


@jit
def load_tile(
    row_ptr: tl.tensor,
    o: tl.tensor,
    shift: tl.tensor,
    C: tl.tensor,
    ALIGN: tl.constexpr,
    EVICT: tl.constexpr,
) -> tl.tensor:
    """Load elements `o` of a row of `C`, whole pieces: what is outside the row is undefined."""
    past = (shift + C + ALIGN - 1) // ALIGN * ALIGN
    return tl.load(row_ptr + o, mask=o < past, other=0.0, eviction_policy=EVICT)


@jit
def store_tile(
    row_ptr: tl.tensor,
    o: tl.tensor,
    value: tl.tensor,
    shift: tl.tensor,
    C: tl.tensor,
    ALIGN: tl.constexpr,
    SAME: tl.constexpr,
) -> tl.tensor:
    """Store the whole pieces of a row of `C`; all of it where rows are not aligned alike."""
    value = value.to(row_ptr.dtype.element_ty)
    if SAME:
        first = (shift + ALIGN - 1) // ALIGN * ALIGN
        past = (shift + C) // ALIGN * ALIGN
        tl.store(row_ptr + o, value, mask=(o >= first) & (o < past))
    else:
        tl.store(row_ptr + o, value, mask=(o >= shift) & (o < shift + C))


@jit
def edge_offsets(shift: tl.tensor, C: tl.tensor, ALIGN: tl.constexpr) -> tl.tensor:
    """Elements that `store_tile` leaves out, [2 * ALIGN], and which of them there are."""
    e = tl.arange(0, 2 * ALIGN)
    first = (shift + ALIGN - 1) // ALIGN * ALIGN
    past = (shift + C) // ALIGN * ALIGN
    o = tl.where(e < ALIGN, e, past + e - ALIGN)
    lead = (e < ALIGN) & (o >= shift) & (o < first)
    trail = (e >= ALIGN) & (o >= first)
    return o, (lead | trail) & (o < shift + C)


@jit
def grouped_columns(
    G: tl.constexpr, Q: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_Q: tl.constexpr
) -> tl.tensor:
    """Columns of a tile of G groups of Q, [1, BLOCK_G, BLOCK_Q], and which of them there are."""
    g = tl.arange(0, BLOCK_G)[None, :, None]
    q = tl.arange(0, BLOCK_Q)[None, None, :]
    return g * Q + q, (g < G) & (q < Q)


@jit
def finite_or_zero(top: tl.tensor) -> tl.tensor:
    """A maximum that may be subtracted: -inf, which is that of nothing, becomes 0."""
    return tl.where(top == float("-inf"), 0.0, top)


@jit
def exponentials(d: tl.tensor, T: tl.tensor) -> tl.tensor:
    """exp(d / T)."""
    return tl.exp2(d * (LOG2_E / T))


@jit
def at_temperature_1(e: tl.tensor, d: tl.tensor, POWER: tl.constexpr) -> tl.tensor:
    """exp(d), where e = exp(d / T) and POWER is that of T."""
    if POWER == 2:
        e = e * e
    if POWER == 0 or POWER == 4:  # not e ** 4: it would be kept for the gradient, beside e
        e = tl.exp2(d * LOG2_E)
    return e


@jit
def log1p(x: tl.tensor) -> tl.tensor:
    """log(1 + x) for x from 0 to 1, with all digits of a small one."""
    return two_atanh(x / (2.0 + x))


@jit
def two_atanh(z: tl.tensor) -> tl.tensor:
    """log((1 + z) / (1 - z)) for z from 0 to 1/3."""
    s = z * z
    return 2.0 * (z + z * s * (0.3333332 + s * (0.2000378 + s * (0.1411831 + s * 0.13425749))))


@jit
def js_terms(q: tl.tensor, p: tl.tensor, apart: tl.tensor) -> tl.tensor:
    """u = q log(q / m) / 2, and both terms of Jensen-Shannon; m is the mixture.

    `apart` is log p - log q. As in `linear_kl._numba._js_part`: one logarithm of a small range does
    for both sides, and where they are near no terms cancel.
    """
    both = p + q  # and their distance: a GPU's maximum of NaN and a number is the number
    gap = tl.abs(p - q)
    log = two_atanh(gap / (2.0 * tl.maximum(p, q) + both))
    u = tl.where(q == 0, 0.0, 0.5 * q * (log - tl.maximum(apart, 0.0)))
    other = tl.where(p == 0, 0.0, 0.5 * p * (log + tl.minimum(apart, 0.0)))
    r = gap / both
    r *= r
    near = r * (0.5 + r * (0.08333361 + r * (0.03327787 + r * 0.01946807)))
    return u, tl.where(r <= 0.09, 0.5 * both * near, u + other)
