"""What the Numba kernels call: how that is compiled, and matrices as addresses.

Numba has no 16-bit floats on CPU, so matrices come as addresses and a kind: one compilation serves
every dtype, and no views have to be made for a call. The caller keeps the tensors alive.

Numba's disk cache follows the file of a kernel, not the files of what it calls: after an edit here,
in `_launch` or in any other file that kernels call delete the `*.nbi` beside the kernels, or set
NUMBA_CACHE_DIR to an empty folder.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from torch import Tensor

__all__ = [
    "BF16",
    "FP8",
    "FP32",
    "INT8",
    "OPTIONS",
    "Real",
    "array_at",
    "dense_rows",
    "exact",
    "fast",
    "fma",
    "inlined",
    "prefetch",
    "rows_of",
]

F = TypeVar("F", bound=Callable[..., Any])
Real: TypeAlias = Any  # a Python or NumPy scalar of whatever width Numba infers

# No "nnan" or "ninf": banned tokens are -inf, and NaN must come through.
FAST = {"contract", "reassoc", "arcp", "nsz"}
FP32, BF16, FP16, INT8, FP8 = range(5)
KINDS = {
    torch.float32: FP32,
    torch.bfloat16: BF16,
    torch.float16: FP16,
    torch.int8: INT8,
    torch.float8_e4m3fn: FP8,
}


OPTIONS: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "cache": True}
"""What kernels and what they call are compiled with."""


def inlined(**options: Any) -> Callable[[F], F]:
    """`numba.njit` for what kernels call: a part of its caller's code, with no way in from Python.

    Inlined, always: a call would run one of two copies whose sums may be ordered otherwise, the
    function's own in the process that compiles it, its caller's where this comes from the disk.
    """
    alone = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(Callable[[F], F], njit(**{**OPTIONS, **alone, **options}))


def fast() -> Callable[[F], F]:
    """As `inlined`, with every fast-math flag that respects infinities and NaN."""
    return inlined()


def exact() -> Callable[[F], F]:
    """As `fast`, but every operation rounds as it is written.

    Numba gives a function that says nothing of fast-math the flags of whom it is compiled for.
    """
    return inlined(fastmath=False)


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


def _fused(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), make


# As decorators they would give `typing` to who calls.
prefetch: Any = intrinsic(_line)
fma: Any = intrinsic(_fused)


@fast()
def array_at(address: int, size: int, dtype: Any) -> Any:
    """The `size` elements at an address."""
    return carray(_pointer(address), (size,), dtype)  # type: ignore[call-arg]  # Numba gives `typing`
