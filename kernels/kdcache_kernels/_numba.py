"""Pieces shared by the Numba kernels: rows of any dtype at an address, exp, row reductions.

Numba has no 16-bit floats on CPU, so matrices come as addresses and a kind: one compilation serves
every dtype, and no views have to be made for a call. The caller keeps the tensors alive.

Numba's disk cache follows the file of a kernel, not the files it calls: after an edit here delete
the `*.nbi` beside the kernels, or set NUMBA_CACHE_DIR to an empty folder.
"""

import os
import threading
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from llvmlite import ir
from numba import config, njit, prange, set_num_threads, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numba.np.ufunc.parallel import threading_layer
from torch import Tensor

__all__ = [
    "FP32",
    "INT8",
    "PIECE",
    "Real",
    "array_at",
    "block_count",
    "clear",
    "copy",
    "dense_rows",
    "exact",
    "exponentials",
    "fast",
    "fill",
    "load_any_row",
    "load_row",
    "log_add",
    "log_sum",
    "parallel",
    "pieces",
    "prange",
    "round_row",
    "row_sum",
    "rows_of",
]

F = TypeVar("F", bound=Callable[..., Any])
Real: TypeAlias = Any  # a Python or NumPy scalar of whatever width Numba infers

# No "nnan" or "ninf": banned tokens are -inf, and NaN must come through.
FAST = {"contract", "reassoc", "arcp", "nsz"}
# Of what Numba can share among threads, the loops that ask for it: others take seconds to compile.
OTHERS = ("comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil")
PRANGE = {"prange": True, **dict.fromkeys(OTHERS, False)}
FP32, BF16, FP16, INT8, FP8 = range(5)
KINDS = {
    torch.float32: FP32,
    torch.bfloat16: BF16,
    torch.float16: FP16,
    torch.int8: INT8,
    torch.float8_e4m3fn: FP8,
}
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()


def _compiled(**options: Any) -> Callable[[F], F]:
    """`numba.njit` with a disk cache."""
    defaults = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": True}
    return cast(Callable[[F], F], njit(**{**defaults, **options}))


def fast() -> Callable[[F], F]:
    """For what kernels call: every fast-math flag that respects infinities and NaN.

    Inlined, always: a call would run one of two copies whose sums may be ordered otherwise, the
    function's own in the process that compiles it, its caller's where this comes from the disk.
    """
    return _compiled(forceinline=True)


def parallel() -> Callable[[F], F]:
    """For a kernel: as `fast`, its `prange` shared among threads, where there are any.

    They do not survive a fork: where SIGTERM is handled, OpenMP's launch in a child returns with
    nothing computed. So a child whose parent had them runs a second compilation, on one thread.
    """

    def decorate(function: F) -> F:
        threads, alone = _compiled(parallel={**PRANGE})(function), _compiled()(_renamed(function))

        @wraps(function)
        def launch(*args: Any) -> Any:
            return (alone if _threads_lost else threads)(*args)

        return cast(F, launch)

    return decorate


def _renamed(function: Any) -> Any:
    """A copy under another name, which names its files in Numba's disk cache."""
    code, names = function.__code__, function.__globals__
    copy = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__qualname__, copy.__module__ = f"{function.__qualname__}_alone", function.__module__
    return copy


_threads_lost = False


def _after_fork() -> None:
    """In a child: find out whether the parent had threads; torch's OpenMP has then lost its too."""
    global _threads_lost
    try:
        threading_layer()  # type: ignore[no-untyped-call]  # so in numba
    except ValueError:  # Numba had started none
        return
    _threads_lost = True
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)


def exact() -> Callable[[F], F]:
    """As `fast`, but every operation rounds as it is written.

    Numba gives a function that says nothing of fast-math the flags of whom it is compiled for.
    """
    return _compiled(forceinline=True, fastmath=False)


def block_count(rows: int) -> int:
    """Blocks to cut rows into for the next launch from this thread, which uses torch's threads."""
    if _threads_lost:
        return 1
    wanted = torch.get_num_threads()
    if getattr(_launches, "threads", None) != wanted:
        _set_threads(wanted)
    return max(1, min(rows, 4 * wanted))


_launches = threading.local()  # Numba has a number of threads for each that launches kernels


def _set_threads(wanted: int) -> None:
    most: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # Numba sets it on loading
    set_num_threads(min(wanted, most))
    _launches.threads = wanted
    if torch.get_num_threads() != wanted:
        # The first call starts Numba's threads, and sets those of the OpenMP that torch uses too:
        # matrix products would then be cut otherwise, and differ in their last bits.
        torch.set_num_threads(wanted)


def same_blocks(rows: int) -> int:
    """As `block_count`, but as many for any number of threads: what is summed over blocks has the
    same bits then, in a forked child too.
    """
    block_count(rows)
    return max(1, min(rows, 16))


def dense_rows(x: Tensor) -> Tensor:
    """`x` itself, or a copy if the elements of its rows do not lie side by side."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def rows_of(x: Tensor | None) -> tuple[int, int, int]:
    """Address of a matrix of dense rows, bytes from one to the next, kind; address 0 for none."""
    if x is None:
        return 0, 0, FP32
    return x.data_ptr(), x.stride(0) * x.dtype.itemsize, KINDS[x.dtype]


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer."""

    def convert(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), convert


def _line(typing: Any, address: Any) -> Any:
    """Ask for the line of memory at an address, into the second cache; any address will do."""

    def ask(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], context.get_value_type(types.voidptr))
        how = [ir.IntType(32)(setting) for setting in (0, 2, 1)]  # read, second cache, data
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *(setting.type for setting in how)])
        asks = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(asks, [pointer, *how])
        return context.get_dummy_value()

    return types.void(types.int64), ask


_prefetch: Any = intrinsic(_line)  # as a decorator it would give `typing` to who calls


@fast()
def array_at(address: int, size: int, dtype: Any) -> Any:
    """The `size` elements at an address."""
    return carray(_pointer(address), (size,), dtype)  # type: ignore[call-arg]  # Numba gives `typing`


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
@_compiled(forceinline=True, fastmath={"contract"})
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
            _prefetch(ahead + 4 * start + line)
            _prefetch(ahead2 + 4 * start + line)
        total, squares = exp_part(x[start : start + CHUNK], top, factor, square)
        sums[1] += total
        sums[2] += squares
