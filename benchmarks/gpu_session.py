"""Everything worth asking of a GPU, in two runs of at most nine minutes: right first, then fast.

    python3 benchmarks/gpu_session.py OUT --stage right     checks side by side, then the pipeline
    python3 benchmarks/gpu_session.py OUT --stage fast      times, alone on the machine

Without --stage both run; the name of a stage runs it alone. Writes a JSON file for every stage, and
kernels.json, a report of `kdcache bench kernels`, anew after every item. The same command goes on
after the items that OUT answers: what was left out, wrong or failed is asked again, so changed code
wants an empty OUT. A failure is recorded and the next item runs.

Nothing is compiled while it is timed. Most of the time of checks goes into compiling, so they run
in many processes at once; `graphs`, `synchronisation` and `compiled` have the sizes, types and cuts
of rows that are timed, and `fast` on the same machine finds what they left in Triton's cache.

Needs torch and triton, and Liger where it is to be timed. The stage `pipeline`, a build and a
training with random teachers, takes the requirements of kdcache: what of them is missing stands in
pipeline.json (`absent`, `carry`), as in counters.json that NVIDIA's profiler is. `--device cpu`
goes through all that runs without a GPU, with tiny sizes and in Triton's interpreter.
`gpu_table.py` makes the table of topk_kl's shapes of what the stage `shapes` timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from gpu_run import Session
from gpu_stages import STAGES

from kdcache.bench.report import new_report, save_report

GRACE = 35  # seconds to start a stage, and for its last item
GROUPS: dict[str, list[tuple[str, ...]]] = {
    "right": [
        ("checks", "graphs", "synchronisation", "races", "compiled"),
        ("beyond_2_31",),
        ("pipeline",),
    ],
    "fast": [("shapes",), ("products",), ("times",), ("counters",)],
}
"""Stages that run side by side, one batch of them after the other."""


def workers(given: argparse.Namespace, stages: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The command of every process that some stages take; without a GPU each takes one."""
    most = len(os.sched_getaffinity(0)) if given.device.startswith("cuda") else 1
    for name in stages:
        count = min(STAGES[name].processes, most)
        for shard in range(count):
            options = ["--stage", name, "--shard", str(shard), str(count), "--device", given.device]
            options += ["--scale", str(given.scale)]
            yield name, [sys.executable, __file__, str(given.out), *options]


def wait(name: str, process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether a process ended well, and before its time was up: a kernel may hang."""
    try:
        return process.wait(max(1.0, deadline - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"{name}: killed, it did not end", flush=True)
        return False


def merge(out: Path, name: str) -> None:
    """One file of what the processes of a stage wrote, and of what stood in it before."""
    whole, parts = out / f"{name}.json", sorted(out.glob(f"{name}.*.json"))
    found = [json.loads(path.read_text("utf-8")) for path in (whole, *parts) if path.exists()]
    if parts:
        items = {item["item"]: item for report in found for item in report["items"]}
        seconds = max(report["seconds"] for report in found)
        save_report(whole, new_report(name, seconds=seconds, items=list(items.values())))
    for part in parts:
        part.unlink()


def limit(name: str, scale: float = 1.0) -> float:
    """Seconds after which a stage is killed."""
    return scale * STAGES[name].seconds + GRACE


def main() -> None:
    """Run stages, every process of them apart; exits with 1 if anything was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", choices=[*STAGES, *GROUPS], help="only this, or these")
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds of a stage")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shard", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.shard:
        stage, session = STAGES[given.stage], Session(given.out, given.device)
        right = session.run(given.stage, stage, given.scale * stage.seconds, tuple(given.shard))
        sys.exit(not right)
    every = {**GROUPS, **{name: [(name,)] for name in STAGES}, None: [*chain(*GROUPS.values())]}
    env = {**os.environ, **({} if given.device.startswith("cuda") else {"TRITON_INTERPRET": "1"})}
    bad = set()
    for batch in every[given.stage]:
        for name in batch:
            merge(given.out, name)  # what a killed run left
        begun = time.monotonic()
        started = [(name, subprocess.Popen(line, env=env)) for name, line in workers(given, batch)]
        for name, process in started:
            ended = wait(name, process, begun + limit(name, given.scale))
            bad |= set() if ended else {name}
        for name in batch:
            merge(given.out, name)
    sys.exit(f"not right: {', '.join(sorted(bad))}" if bad else 0)


if __name__ == "__main__":
    main()
