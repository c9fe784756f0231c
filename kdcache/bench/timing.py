"""Time and memory of a call, repeats of several calls in turn, and what the machine can reach."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdcache_kernels import empty_cache

Call = Callable[[], Any]

GPU_SIDE, CPU_SIDE, CPU_SIDE_16_BIT = 8192, 1024, 256
"""Side of the square matrices whose product measures the rate of matrix products."""


CPU_FLUSH_BYTES = 1 << 26  # more than the last-level cache of most; the few larger are shared
GPU_FLUSH_BYTES, GPU_FLUSHES = 1 << 28, 16


class Contender(NamedTuple):
    """Something to time: `prepare` makes a call, and only the call is timed."""

    prepare: Callable[[], Call]


class Stopwatch:
    """Times single calls on one device, its caches emptied before each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        flush = GPU_FLUSH_BYTES if self._cuda else CPU_FLUSH_BYTES
        self._flush = torch.empty(flush, dtype=torch.uint8, device=device)

    def seconds(self, call: Call) -> float:
        """Seconds of one call; what it returns is freed after the clock has stopped."""
        if not self._cuda:
            self._flush.fill_(1)
            begin = time.perf_counter()
            result = call()
            end = time.perf_counter()
            del result
            return end - begin
        # A millisecond in which launches run ahead, as in training: what is timed is the GPU.
        for _ in range(GPU_FLUSHES):
            self._flush.fill_(1)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        result = call()
        last.record()
        last.synchronize()
        del result
        return float(first.elapsed_time(last)) / 1000

    def peak_bytes(self, call: Call) -> int | None:
        """Most bytes held at once during a call, beyond those held before; None if unknown.

        On a GPU those torch allocated; on a CPU the pages of the process, so small calls drown in
        the allocator's noise of some 100 kB.
        """
        peak = PeakBytes(self.device)
        result = call()
        most = peak.end()
        del result
        return most


class PeakBytes:
    """The most bytes held at once between its making and `end`, beyond those held at first.

    On a GPU those torch allocated; on a CPU the pages of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = _begin_cuda(device) if device.type == "cuda" else _begin_cpu()

    def end(self) -> int | None:
        """The bytes; None if unknown."""
        if self._before is None:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return max(0, _status("VmHWM") - self._before)


def _begin_cuda(device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _begin_cpu() -> int | None:
    try:
        empty_cache()  # freed pages that would be used again
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        return resident_bytes()
    except (OSError, AttributeError):  # another kernel or C library
        return None


def resident_bytes() -> int:
    """Bytes of memory that this process has now."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status names no {name}")


def interleave(
    watch: Stopwatch, contenders: Mapping[str, Contender], repeats: int, *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of every contender, `repeats` times each and by turns, so that all share the noise.

    The order is another one in every turn: who comes next finds what the one before has left in the
    caches, code above all, which is much of a short call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names, order = list(contenders), random.Random(0)
    for turn in range(warm_up + repeats):
        order.shuffle(names)
        for name in names:
            took = watch.seconds(contenders[name].prepare())
            if turn >= warm_up:
                seconds[name].append(took)
    return seconds


def copy_probe(bytes_moved: int, device: torch.device) -> Contender:
    """A copy that reads half of the bytes and writes the other half."""
    half = max(1, bytes_moved // 2)
    source = torch.randint(256, (half,), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Contender(lambda: lambda: target.copy_(source))


def probe_dtypes(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, ...]:
    """Dtypes whose products may be the limit: on a CPU float32 is often faster than 16 bits."""
    return (dtype,) if device.type == "cuda" else tuple({dtype, torch.float32})


def gemm_probe(dtype: torch.dtype, device: torch.device) -> tuple[Contender, int]:
    """A square matrix product and its floating-point operations."""
    side = CPU_SIDE if dtype == torch.float32 else CPU_SIDE_16_BIT
    side = GPU_SIDE if device.type == "cuda" else side
    left = torch.randn((side, side), dtype=dtype, device=device)  # a GPU multiplies zeros faster
    out = torch.empty_like(left)
    return Contender(lambda: lambda: torch.mm(left, left, out=out)), 2 * side**3
