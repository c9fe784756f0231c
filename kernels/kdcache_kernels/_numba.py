"""Pieces shared by the Numba kernels: 16-bit floats as bits, exp, row reductions.

Numba has no 16-bit floats on CPU, so tensors come as flat arrays of bytes: that
also makes one compilation serve every dtype.

Numba's disk cache follows the file of a kernel, not the files it calls: after an edit here delete
the `*.nbi` beside the kernels, or set NUMBA_CACHE_DIR to an empty folder.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

try:
    from numba import get_num_threads, njit, prange
except ImportError as error:
    raise ImportError(
        "kdcache_kernels runs on CPU through numba, which is not installed: pip install numba"
    ) from error

__all__ = [
    "Real",
    "bits",
    "exp_part",
    "fast",
    "get_num_threads",
    "gradient_buffer",
    "load_row",
    "prange",
    "round_bf16",
    "row_max",
    "store_row",
    "zero_row",
]

F = TypeVar("F", bound=Callable[..., Any])
Real: TypeAlias = Any  # a Python or NumPy scalar of whatever width Numba infers

# No "nnan" or "ninf": banned tokens are -inf, and NaN must come through.
FAST = {"contract", "reassoc", "arcp", "nsz"}
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}


def fast(parallel: bool = False) -> Callable[[F], F]:
    """`numba.njit` with a disk cache and every fast-math flag that respects infinities and NaN."""
    decorate = njit(cache=True, nogil=True, parallel=parallel, fastmath=FAST, error_model="numpy")
    return cast(Callable[[F], F], decorate)


def bits(x: Tensor) -> tuple[Any, int, int]:
    """View [N, C] floats or int8 as (flat bytes, row stride in bytes, kind)."""
    if x.stride(1) != 1 and x.shape[1] != 1:
        x = x.contiguous()
    n, columns = x.shape
    stride = x.stride(0)
    flat = x.as_strided((((n - 1) * stride + columns) if n and columns else 0,), (1,))
    return flat.view(torch.uint8).numpy(), stride * x.dtype.itemsize, KINDS[x.dtype]


def gradient_buffer(n: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Any, Any]:
    """Make an empty [n, columns] gradient, float32 or bfloat16, and two flat views of it.

    The first view is float32, the second the bits of bfloat16; that of the other dtype is empty.
    Allocated by NumPy, which asks the kernel for huge pages: first touch is then 3 times faster.
    """
    if dtype == torch.float32:
        out32 = np.empty((n, columns), np.float32)
        return torch.from_numpy(out32), out32.reshape(-1), np.empty(0, np.uint16)
    out16 = np.empty((n, columns), np.uint16)
    gradient = torch.from_numpy(out16.view(np.int16)).view(dtype)
    return gradient, np.empty(0, np.float32), out16.reshape(-1)


@njit(cache=True, nogil=True, error_model="numpy")
def exp32(x: Real) -> Real:
    """exp(x) for x <= 0 in float32, 2 ulp, vectorisable; 0 below -87, NaN for NaN.

    No fast-math here: reassociation would undo the two-step reduction by ln 2.
    """
    low = np.float32(-87.0)
    y = low if x < low else x
    n = np.floor(y * np.float32(1.44269504) + np.float32(0.5))
    r = y - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    power = np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(0.0) if x < low else p * power


@fast()
def load_row(source: Any, start: int, kind: int, out: Any) -> None:
    """Decode one row, from byte `start` of the flat `source`, to float32 `out`."""
    raw = out.view(np.uint32)
    n = out.size
    if kind == 0:
        raw[:] = source[start : start + 4 * n].view(np.uint32)
    elif kind == 1:
        half = source[start : start + 2 * n].view(np.uint16)
        for v in range(n):
            raw[v] = np.uint32(half[v]) << np.uint32(16)
    elif kind == 2:
        _load_fp16(source[start : start + 2 * n].view(np.uint16), out)
    else:
        code = source[start : start + n].view(np.int8)
        for v in range(n):
            out[v] = code[v]


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
def row_max(x: Any) -> Real:
    """Largest element of a float32 row; NaN if it holds a positive NaN.

    Compared as integers in the order of the floats, which vectorises without assuming no NaN.
    """
    raw = x.view(np.int32)
    top = np.int32(-0x80000000)
    for v in range(raw.size):
        u = raw[v]
        key = u ^ ((u >> np.int32(31)) & np.int32(0x7FFFFFFF))
        top = max(top, key)
    return np.int32(top ^ ((top >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@fast()
def exp_part(x: Any, top: Real, factor: Real, square: bool) -> tuple[Real, Real]:
    """Replace a short `x` by exp((x - top) * factor); return its sum, and that of its squares.

    In place on purpose: two arrays that may overlap fall back to a scalar loop, 5 times slower.
    """
    total, squares = np.float32(0.0), np.float32(0.0)
    for v in range(x.size):
        e = exp32((x[v] - top) * factor)
        x[v] = e
        total += e
    if square:
        for v in range(x.size):
            squares += x[v] * x[v]
    return total, squares


@fast()
def store_row(x: Any, out32: Any, out16: Any, i: int) -> None:
    """Write the row to whichever output is in use."""
    start = i * x.size
    if out32.size:
        out32[start : start + x.size] = x
    else:
        for v in range(x.size):
            out16[start + v] = round_bf16(x[v])


@fast()
def zero_row(out32: Any, out16: Any, i: int, v: int) -> None:
    if out32.size:
        out32[i * v : (i + 1) * v] = np.float32(0.0)
    else:
        out16[i * v : (i + 1) * v] = np.uint16(0)
