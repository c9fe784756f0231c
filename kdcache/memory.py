"""How much memory this process has used, and whether it keeps what it has freed."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
LARGE = 2**31 - 1  # bytes, the largest that mallopt takes
USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26}
"""What glibc works with once a process has freed a large block; bytes, but for the first."""


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux tells it as VmHWM, which starts anew with the program. `ru_maxrss`, used elsewhere, does
    not: a process started by a larger one begins with the peak of its parent.
    """
    if STATUS.exists():
        for line in STATUS.read_text("ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def kept_pages(device: str) -> Iterator[None]:
    """Keep freed memory for the next tensor, instead of handing its pages back to the system.

    What a step of training on a CPU frees, the next step asks for again: the gradient of an
    embedding of 30,522 x 384 is 47 MB, for which the system maps and clears pages in eight times
    the time that it takes to write zeros into pages that are there. Of glibc alone, for the whole
    process; other allocators have rules of their own. At the end the memory is given back.

    Args:
        device: the type of the one that trains; pages of the others' memory are not handed back.
    """
    libc = ctypes.CDLL(None)
    if device != "cpu" or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, LARGE)
    try:
        yield
    finally:
        for option, value in USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
