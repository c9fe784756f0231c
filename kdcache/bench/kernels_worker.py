"""A process that measures a grid of kernels and prints a row of JSON after each.

`kernels_keeping` starts it, with an allocator that keeps its pages.
"""

from __future__ import annotations

import json
import sys
from itertools import islice

import torch

from kdcache.bench.kernels import measure
from kdcache.bench.kernels_grid import Grid
from kdcache.bench.timing import Stopwatch, resident_bytes

PROBE = 1 << 27  # bytes


def keeps_pages() -> bool:
    """Whether the pages of a freed tensor stay with the process."""
    torch.ones(PROBE, dtype=torch.uint8)
    before = resident_bytes()
    held = torch.ones(PROBE, dtype=torch.uint8)
    del held
    torch.ones(2 * PROBE, dtype=torch.uint8)
    return resident_bytes() - before > PROBE // 2


def main() -> None:
    """Measure the grid that the first argument describes."""
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(wanted["threads"])
    if not keeps_pages():
        raise SystemExit("this C library's allocator hands pages back whatever it is told")
    grid, watch = Grid(**wanted["grid"]), Stopwatch(torch.device("cpu"))
    for case, size, dtype in islice(grid.work(), wanted["done"], None):
        print(json.dumps(measure(case, size, dtype, grid, watch)), flush=True)


if __name__ == "__main__":
    main()
