"""Everything worth asking of a GPU, in two runs of a few minutes: right first, then fast.

    python3 benchmarks/gpu_session.py OUT --stage right     checks of every kind, side by side
    python3 benchmarks/gpu_session.py OUT --stage fast      times, alone on the machine

Without --stage both run. Writes a JSON file for every stage, and kernels.json, a report of `kdcache
bench kernels`, anew after every item, so that a killed run keeps what it found. A failure is
recorded and the next item runs. Checks run in many processes at once, for most of their time goes
into compiling; times find what those have compiled. Needs torch and triton, and Liger where it is
to be timed; nothing of a cache. `--device cpu --rows 24` walks through some of it without a GPU.
`gpu_table.py` makes the table of topk_kl's shapes of what the stage `shapes` timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from gpu_stages import STAGES, Session

from kdcache.bench.report import new_report, save_report

GRACE = 35  # seconds to start a stage, and for its last item
GROUPS: dict[str, list[tuple[str, ...]]] = {
    "right": [("checks", "graphs", "synchronisation", "races", "compiled"), ("beyond_2_31",)],
    "fast": [("shapes",), ("products",), ("times",)],
}
"""Stages that run side by side, one batch of them after the other."""


def workers(given: argparse.Namespace, stages: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The command of every process that some stages take."""
    found = []
    for name in stages:
        stage = STAGES[name]
        if stage.gpu and not given.device.startswith("cuda"):
            continue
        count = min(stage.processes, os.cpu_count() or 1)
        for shard in range(count):
            options = ["--stage", name, "--shard", str(shard), str(count), "--device", given.device]
            options += ["--scale", str(given.scale)]
            options += ["--rows", str(given.rows)] if given.rows else []
            found.append((name, [sys.executable, __file__, str(given.out), *options]))
    return found


def wait(name: str, process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether a process ended well, and before its time was up: a kernel may hang."""
    try:
        return process.wait(max(1.0, deadline - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        print(f"{name}: killed, it did not end", flush=True)
        return False


def merge(out: Path, name: str) -> None:
    """One file of what the processes of a stage wrote."""
    parts = sorted(out.glob(f"{name}.*.json"))
    found = [json.loads(part.read_text("utf-8")) for part in parts]
    if found:
        items = [item for part in found for item in part["items"]]
        seconds = max(part["seconds"] for part in found)
        save_report(out / f"{name}.json", new_report(name, seconds=seconds, items=items))
    for part in parts:
        part.unlink()


def main() -> None:
    """Run stages, every process of them apart; exits with 1 if anything was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", choices=[*STAGES, *GROUPS], help="only this, or these")
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds of a stage")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, help="no more rows than this anywhere")
    parser.add_argument("--shard", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.shard:
        seconds = given.scale * STAGES[given.stage].seconds
        session = Session(given.out, given.device, given.rows, tuple(given.shard))
        sys.exit(not session.run(given.stage, seconds))
    every = {**GROUPS, **{name: [(name,)] for name in STAGES}, None: [*chain(*GROUPS.values())]}
    bad = set()
    for batch in every[given.stage]:
        begun = time.monotonic()
        started = [(name, subprocess.Popen(line)) for name, line in workers(given, batch)]
        for name, process in started:
            limit = given.scale * STAGES[name].seconds + GRACE
            bad |= set() if wait(name, process, begun + limit) else {name}
        for name in batch:
            merge(given.out, name)
    sys.exit(f"not right: {', '.join(sorted(bad))}" if bad else 0)


if __name__ == "__main__":
    main()
