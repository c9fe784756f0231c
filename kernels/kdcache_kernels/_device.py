"""What the host may ask of a device without waiting for it."""

import torch
from torch import Tensor


def captured(x: Tensor) -> bool:
    """Whether what runs on the device of `x` now becomes part of a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def free_bytes(x: Tensor) -> int | None:
    """Bytes that could still be had on the device of `x`; None where that is not known.

    Those that the card has left, and those that torch's allocator holds and uses for nothing. The
    driver and the allocator answer from their books: neither waits for what runs on the device.
    Unknown while a graph is captured, into memory of its own: it is not this that a replay finds,
    and of the driver's calls a capture forbids many. Unknown, too, with an allocator of somebody's
    own, which keeps no books.
    """
    if not x.is_cuda or captured(x) or torch.cuda.get_allocator_backend() == "pluggable":
        return None
    books = torch.cuda.memory_stats(x.device)
    held = books["reserved_bytes.all.current"] - books["allocated_bytes.all.current"]
    return int(torch.cuda.mem_get_info(x.device)[0] + held)
