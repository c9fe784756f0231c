"""How the Numba kernels are launched: blocks of their work, shared among threads.

A loop over blocks in every kernel would be Numba's own way, its `prange`, which compiles the body
of the loop four times, and once more for processes that have lost their threads. So a kernel is
the work of one block, compiled once and called through its address, and one loop serves them all.
"""

import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, config, njit, prange, set_num_threads, types
from numba.extending import intrinsic
from numba.np.ufunc.parallel import threading_layer

from kdcache_kernels._numba import OPTIONS, F

__all__ = ["arguments", "block_count", "kernel", "same_blocks"]

Body = Callable[[int, int], int]


class Arguments(Protocol):
    """What a kernel is given: a NamedTuple of numbers, one of them the blocks it is cut into."""

    @property
    def blocks(self) -> int: ...

    def __iter__(self) -> Iterator[int | float]: ...


Given = TypeVar("Given", bound=Arguments)

NUMBERS = {int: (types.int64, "q"), float: (types.float64, "d")}
"""Of an argument's type: Numba's, and that of a packed one; both have eight bytes."""

# Of what Numba can share among threads, the loops that ask for it: others take seconds to compile.
OTHERS = ("comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil")
PRANGE = {"prange": True, **dict.fromkeys(OTHERS, False)}

NUMBER = ir.IntType(64)


def kernel(given: type[Given], *, sums: bool = False) -> Callable[[Body], "Kernel[Given]"]:
    """For the work of a kernel: `body(address, b)` does that of block `b` and returns True.

    It reads what it is given, a NamedTuple of whole and real numbers, with `arguments(address,
    given)`. One that `sums` is called once more when all blocks are done, with their number, and
    returns a number from 1 on, which the launch returns.
    """
    return lambda body: Kernel(body, given, sums)


class Kernel(Generic[Given]):
    """A kernel, compiled when it is first launched or read from Numba's disk cache."""

    def __init__(self, body: Body, given: type[Given], sums: bool) -> None:
        self._body, self._sums = body, int(sums)
        self._pack = struct.Struct("".join(NUMBERS[kind][1] for kind in _kinds(given))).pack
        # All bodies have one signature, so it is by its name that Numba's disk cache has to tell a
        # kernel from one that was given other arguments.
        body.__qualname__ += f"_{zlib.crc32(repr(given.__annotations__).encode()):08x}"
        self._address = 0

    def __call__(self, given: Given) -> int:
        """Do the work of `given.blocks` blocks; return what the last call returned.

        Raises MemoryError if a block finds no room for the rows that it works on.
        """
        address = self._address or self._compiled()
        launch = _one_thread if _threads_lost or given.blocks == 1 else _threads
        packed = np.frombuffer(self._pack(*given), np.int64)
        found = launch(address, packed, given.blocks, self._sums)
        if not found:
            raise MemoryError(f"{self._body.__module__} found no memory for the rows it works on")
        return found

    def _compiled(self) -> int:
        compiled: Any = cfunc(types.int64(types.int64, types.int64), **OPTIONS)
        self._address = cast(int, compiled(self._body).address)
        return self._address


def _kinds(given: type[Arguments]) -> list[Any]:
    return list(given.__annotations__.values())


def _arguments(typing: Any, address: Any, given: Any) -> Any:
    """What a kernel is given: the NamedTuple `given` whose fields lie at an address."""
    numbers = [NUMBERS[kind][0] for kind in _kinds(given.instance_class)]
    result: Any = types.NamedTuple(numbers, given.instance_class)  # type: ignore[no-untyped-call]  # so in numba

    def load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fields = []
        for i, number in enumerate(numbers):
            place = builder.add(args[0], NUMBER(8 * i))
            pointer = builder.inttoptr(place, context.get_value_type(number).as_pointer())
            fields.append(builder.load(pointer))
        return context.make_tuple(builder, result, fields)

    return result(types.int64, given), load


def _body(typing: Any, address: Any, given: Any, block: Any) -> Any:
    """Call the body at an address; 0 where it has failed."""

    def call(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(NUMBER, [NUMBER, NUMBER])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64), call


arguments: Any = intrinsic(_arguments)
_call: Any = intrinsic(_body)


def _launcher(**options: Any) -> Callable[[F], F]:
    return cast(Callable[[F], F], njit(nogil=True, **{**OPTIONS, **options}))


@_launcher(parallel={**PRANGE})
def _threads(body: int, given: Any, blocks: int, sums: int) -> int:
    done, at = np.zeros(blocks, np.int64), given.ctypes.data
    for b in prange(blocks):
        done[b] = _call(body, at, b)
    for b in range(blocks):
        if done[b] == 0:
            return 0
    return _call(body, at, blocks) if sums else 1


@_launcher()
def _one_thread(body: int, given: Any, blocks: int, sums: int) -> int:
    at, found = given.ctypes.data, 1
    for b in range(blocks + sums):
        found = _call(body, at, b)
        if found == 0:
            break
    return found


# Threads do not survive a fork: where SIGTERM is handled, OpenMP's launch in a child returns with
# nothing computed. So a child whose parent had them does the blocks one after the other.
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
