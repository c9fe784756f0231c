"""The same measurements where the allocator keeps its pages, in a process of its own.

glibc hands the pages of a large freed tensor back to the system, and the next tensor of that size
waits for new ones: on a CPU that can be most of what a loss in plain torch costs. Our ops keep
their large gradients themselves, so that a comparison under the default allocator alone is one of
allocators. The two thresholds of glibc that stop it are read when a process starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from kdcache.bench.report import Json

KEEPING = "keeping"
NEVER = str(2**40)  # bytes: no tensor is as large
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": NEVER, "MALLOC_TRIM_THRESHOLD_": NEVER}
WORKER = "kdcache.bench.kernels_worker"


def measure_keeping(grid: Mapping[str, Any], threads: int, done: int) -> Iterator[Json]:
    """Rows of a grid, given by its fields, as a worker that keeps its pages measures them, without
    the first `done`.

    RuntimeError, with its last line, if the worker fails or the allocator hands pages back.
    """
    wanted = json.dumps({"grid": grid, "threads": threads, "done": done})
    places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, "-m", WORKER, wanted],
            env={**os.environ, **places, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as worker,
    ):
        try:
            assert worker.stdout is not None
            yield from map(json.loads, worker.stdout)
            code = worker.wait()
        finally:
            worker.kill()
        if code:
            errors.seek(0)
            last = errors.read().strip().splitlines() or [f"exit code {code}"]
            raise RuntimeError(last[-1])


def add_keeping(row: Json, again: Json) -> None:
    """Put the times that a worker measured of a row beside the row's own, rival by rival."""
    row[KEEPING] = {name: again[name] for name in ("seconds", "fastest", "slowest")}
    for name, found in again["rivals"].items():
        if "seconds" in found:
            row["rivals"][name][KEEPING] = {n: found[n] for n in ("seconds", "ratio")}


def best_rival(row: Json) -> Json | None:
    """The rival and allocator with the least ratio to ours beside it; None if none was timed."""
    tries = [
        {"rival": name, "allocator": allocator, **{n: at[n] for n in ("seconds", "ratio")}}
        for name, found in row["rivals"].items()
        for allocator, at in (("default", found), (KEEPING, found.get(KEEPING, {})))
        if "seconds" in at
    ]
    return min(tries, key=lambda tried: tried["ratio"], default=None)
