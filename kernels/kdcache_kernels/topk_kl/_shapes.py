"""How rows of logits are cut on which GPU: a table of what was fastest, and trying it out.

`KDCACHE_AUTOTUNE=1` in the environment times the `CANDIDATES` when rows of a new kind first come,
and keeps the fastest of them while the process lives. Off by default: it takes seconds and a
gradient's memory more, and two processes may then differ in the last digits.
"""

import os
import sys
from collections.abc import Callable, Hashable
from typing import NamedTuple

REGISTERS = 65536  # of a multiprocessor


class Shape(NamedTuple):
    """Elements of a tile, its warps, and the registers that a thread has at most."""

    block: int
    num_warps: int
    registers: int

    def per_processor(self) -> int:
        """Programs that a multiprocessor holds."""
        threads = 32 * self.num_warps
        return max(1, REGISTERS // (threads * self.registers))


OTHERS = {65536: Shape(4096, 8, 128), sys.maxsize: Shape(8192, 16, 128)}
"""What GPUs run that were not measured, and rows that are not `light`: spills on none."""

SHAPES: dict[tuple[int, int], dict[int, Shape]] = {
    (9, 0): {
        32768: Shape(4096, 4, 168),
        65536: Shape(4096, 8, 128),
        sys.maxsize: Shape(8192, 16, 128),
    },
}
"""By compute capability, and by the longest rows they are for: the fastest that spill nothing.

A stage of benchmarks/gpu_session.py times them, benchmarks/gpu_table.py writes them here.
So many rows are under way at once as the caches hold until they are read again.
"""

CANDIDATES = (
    Shape(2048, 8, 80),
    Shape(4096, 4, 168),
    Shape(4096, 8, 128),
    Shape(4096, 16, 64),
    Shape(8192, 32, 64),
    Shape(16384, 16, 128),
)
"""What `KDCACHE_AUTOTUNE` tries beside the table's own: all within 5% of it or better on an H100,
for rows of some length. Some spill where there are labels, which the times tell."""

REPEATS = 3

_fastest: dict[Hashable, Shape] = {}


def light(k: int, item: int, labels: bool) -> bool:
    """Whether rows of `item` bytes a logit, with `k` ids, leave a thread registers to spare.

    Compiled for sm_90, three blocks of four warps spill with labels in float32 or more ids.
    """
    return k <= 256 and (item == 2 or not labels)


def listed(v: int, capability: tuple[int, int], spare: bool = True) -> Shape:
    """The shape for rows of `v` logits by the table; `spare` says that they are `light`."""
    table = SHAPES.get(capability, OTHERS) if spare else OTHERS
    return next(shape for most, shape in table.items() if v <= most)


def autotuned() -> bool:
    """Whether the environment asks for trying out."""
    return os.environ.get("KDCACHE_AUTOTUNE") == "1"


def fastest(kind: Hashable, first: Shape, seconds: Callable[[Shape], float]) -> Shape:
    """The shape of the least `seconds`, found once a `kind` of rows; `first` wins a draw.

    Each runs once before, to be compiled, and counts with the least of three runs.
    """
    if kind not in _fastest:
        took = {}
        for shape in dict.fromkeys((first, *CANDIDATES)):
            seconds(shape)
            took[shape] = min(seconds(shape) for _ in range(REPEATS))
        _fastest[kind] = min(took, key=took.__getitem__)
    return _fastest[kind]
