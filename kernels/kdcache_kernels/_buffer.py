"""Gradient buffers. On a CPU, large ones are used again once nothing holds them.

A step needs the buffers of the step before, and torch has no caching allocator for CPUs: what is
freed goes back to the system, and the first touch of new pages costs more than the kernels do.
"""

import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Memory = npt.NDArray[np.uint8]

LEAST = 2**20  # bytes; smaller ones are torch's
LINE = 64  # bytes; vectors that start a line of the caches are not split between two
MOST = 2**28  # bytes kept in all
UNUSED = 2  # references to memory that nothing uses: a local variable, and the call that counts

_free: "list[Memory]" = []


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    flat: Any = torch.from_numpy(_used_again(size))
    tensor: Tensor = flat.view(dtype).view(shape).detach()  # a view may not change in place
    return tensor


def empty_cache() -> None:
    """Give back the memory of gradients that are no longer used: at most 256 MiB stay otherwise."""
    _free.clear()


def _used_again(size: int) -> "Memory":
    """A view of `size` bytes: the memory under it is in use for as long as the view is."""
    for _ in range(len(_free)):
        try:
            memory = _free.pop(0)  # while it is out, no other thread sees it
        except IndexError:
            break
        unused = sys.getrefcount(memory) == UNUSED and size <= len(memory) - LINE <= 2 * size
        found = _view(memory, size) if unused else None
        _free.append(memory)
        if found is not None:
            return found
    memory = _fresh(size + LINE)
    found = _view(memory, size)
    if size <= MOST:
        _free.append(memory)
    while sum(map(len, _free)) > MOST:
        _free.pop(0)
    return found


def _view(memory: "Memory", size: int) -> "Memory":
    start = -memory.ctypes.data % LINE
    return memory[start : start + size]


def _fresh(size: int) -> "Memory":
    """NumPy asks the kernel for huge pages: the first touch of a large buffer is 3 times faster."""
    import numpy as np

    return np.empty(size, np.uint8)
