"""What the Numba kernels share: how they are compiled and launched, and matrices as addresses.

Numba has no 16-bit floats on CPU, so matrices come as addresses and a kind: one compilation serves
every dtype, and no views have to be made for a call. The caller keeps the tensors alive.

Numba's disk cache follows the file of a kernel, not the files it calls: after an edit here or in
`_numba_rows` delete the `*.nbi` beside the kernels, or set NUMBA_CACHE_DIR to an empty folder.
"""

import os
import threading
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, TypeAlias, TypeVar, cast

import torch
from llvmlite import ir
from numba import config, njit, prange, set_num_threads, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numba.np.ufunc.parallel import threading_layer
from torch import Tensor

__all__ = [
    "BF16",
    "FP8",
    "FP32",
    "INT8",
    "Real",
    "array_at",
    "block_count",
    "compiled",
    "dense_rows",
    "exact",
    "fast",
    "parallel",
    "prange",
    "prefetch",
    "rows_of",
    "same_blocks",
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


def compiled(**options: Any) -> Callable[[F], F]:
    """`numba.njit` with a disk cache."""
    defaults = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": True}
    return cast(Callable[[F], F], njit(**{**defaults, **options}))


def fast() -> Callable[[F], F]:
    """For what kernels call: every fast-math flag that respects infinities and NaN.

    Inlined, always: a call would run one of two copies whose sums may be ordered otherwise, the
    function's own in the process that compiles it, its caller's where this comes from the disk.
    """
    return compiled(forceinline=True)


def parallel() -> Callable[[F], F]:
    """For a kernel: as `fast`, its `prange` shared among threads, where there are any.

    They do not survive a fork: where SIGTERM is handled, OpenMP's launch in a child returns with
    nothing computed. So a child whose parent had them runs a second compilation, on one thread.
    """

    def decorate(function: F) -> F:
        threads, alone = compiled(parallel={**PRANGE})(function), compiled()(_renamed(function))

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
    return compiled(forceinline=True, fastmath=False)


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


prefetch: Any = intrinsic(_line)  # as a decorator it would give `typing` to who calls


@fast()
def array_at(address: int, size: int, dtype: Any) -> Any:
    """The `size` elements at an address."""
    return carray(_pointer(address), (size,), dtype)  # type: ignore[call-arg]  # Numba gives `typing`
