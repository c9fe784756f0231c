"""What the first call of each op takes on a CPU, and what it takes where its kernel is on disk.

    python benchmarks/first_calls.py [--op NAME ...]

Each op is called twice in a process of its own whose compiled kernels lie in an empty folder, and
twice in a second process with what the first one left there. Written is results/first_calls.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from record import save

from kdcache.bench.kernels_cases import CASES, OPS
from kdcache.bench.kernels_inputs import Size

SIZE = {"rows": 1024, "vocab": 4096, "k": 64, "hidden": 768}


def timed(op: str) -> dict[str, float]:
    """Seconds until kernels are there, of the first call and of the next, forward and gradient."""
    import torch

    begun = time.perf_counter()
    import numba  # noqa: F401  # what every op imports

    imported = time.perf_counter() - begun
    case = next(case for case in CASES if case.op == op)
    x = case.draw(Size(**SIZE), torch.float32, torch.device("cpu"), False)
    seconds = []
    for _ in range(2):
        given = case.fresh(case.ours, x)
        begun, cpu = time.perf_counter(), time.process_time()
        case.run(case.ours, given)
        seconds.append((time.perf_counter() - begun, time.process_time() - cpu))
    return {
        "numba": imported,
        "first": seconds[0][0],
        "first_cpu": seconds[0][1],
        "next": seconds[1][0],
    }


def main() -> None:
    """Time the ops one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", choices=OPS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(timed(given.child)))
        return
    found = {}
    for op in given.op or OPS:
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, "NUMBA_CACHE_DIR": folder}
            command = [sys.executable, __file__, "--child", op]
            said = [subprocess.run(command, env=env, capture_output=True, check=True) for _ in "ab"]
        found[op] = dict(zip(("fresh", "again"), (json.loads(s.stdout) for s in said), strict=True))
        print(f"{op}: {found[op]['fresh']['first']:.1f} s, then {found[op]['again']['first']:.2f}")
    if not given.op:
        save("first_calls", {"size": SIZE, "ops": found})


if __name__ == "__main__":
    main()
