"""What a sweep costs beside the trainings of its students, with one worker and with two.

    python benchmarks/sweep.py --cache train.cache --dev dev.csv

Eight students of one setting are trained three times: by one worker with all threads, by one with
one thread, and by two with one thread each. `seconds` is from the call to its return, imports of
the workers among it; `trainings` is what the students' own records add up to. Students of the
second and third are compared weight by weight: they are the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import save
from safetensors.torch import load_file

import kdcache
from kdcache.sweeping.result import SweepResult

STUDENTS = 8
ALLOWED = {"share": 1.05, "seconds": 15.0, "two_workers": 0.65}


def swept(args: argparse.Namespace, out: Path, workers: int, threads: int | None) -> Any:
    """Sweep into a folder; what it took, and the result."""
    started = time.perf_counter()
    result = kdcache.sweep(
        args.cache,
        out=out,
        grid={"recipe": args.recipe, "layers": args.layers, "epochs": args.epochs},
        seeds=STUDENTS,
        dev=args.dev,
        ship=False,
        workers=workers,
        threads=threads,
    )
    seconds = time.perf_counter() - started
    states = {one.state for one in result.record.students}
    if states != {"trained"}:
        raise SystemExit(f"not all students were trained: {result.record.notes}")
    trainings = result.record.seconds["trainings"]
    print(
        f"{workers} workers, {threads or 'all'} threads: {seconds:.1f} s, {trainings:.1f} s of it"
    )
    return {
        "workers": workers,
        "threads": result.record.threads,
        "seconds": seconds,
        "trainings": trainings,
        "each": [one.seconds for one in result.record.students],
    }, result


def require_same(one: SweepResult, other: SweepResult) -> None:
    """Stop unless the students of two sweeps are the same, bit for bit."""
    for student in one.record.students:
        weights = [
            load_file(result.folder / student.folder / "model.safetensors")
            for result in (one, other)
        ]
        if not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]):
            raise SystemExit(f"{student.name} is another student with two workers")


def main() -> None:
    """Run and write results/sweep.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--recipe", default="kd")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--name", default="sweep", help="of the file in results/")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        one, _ = swept(args, root / "one", 1, None)
        single, first = swept(args, root / "single", 1, 1)
        double, second = swept(args, root / "double", 2, 1)
        require_same(first, second)
    save(
        args.name,
        {
            "students": STUDENTS,
            "recipe": args.recipe,
            "layers": args.layers,
            "epochs": args.epochs,
            "allowed": ALLOWED,
            "one_worker": one,
            "single_thread": single,
            "two_workers": double,
            "over_trainings_seconds": one["seconds"] - ALLOWED["share"] * one["trainings"],
            "two_workers_share": double["seconds"] / single["seconds"],
        },
    )


if __name__ == "__main__":
    main()
