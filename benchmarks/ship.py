"""A student and its teacher as they are shipped: bytes, latency, memory, scores and agreement.

    python benchmarks/ship.py --sst2 sst2 --teacher minilm-sst2

Builds a cache of the training texts, distils students of the teacher's layers, ships each of them
and the teacher in float32 and in int8, and measures what is shipped on the dev texts. Each of
several runs measures every model anew; a latency is the median of the runs', all of which are kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from record import save

import kdcache
from kdcache.manifest import Json

STUDENTS = {"2 layers": (3, 6), "1 layer": (6,)}
TIMED = ("p50_ms", "p95_ms", "tokenise_p50_ms")


def distil(args: argparse.Namespace, cache: Path, layers: tuple[int, ...]) -> Path:
    """Train a student from layers of the teacher; returns its folder."""
    out: Path = args.out / f"student-{'-'.join(map(str, layers))}"
    kdcache.train(
        cache,
        recipe="kd",
        out=out,
        init_from_teacher=layers,
        overrides=[
            f"training.max_steps={args.steps}",
            "training.learning_rate=3e-4",
            "training.save_strategy=no",
        ],
    )
    return out


def shipped(args: argparse.Namespace, student: Path) -> Json:
    """Ship and measure a student beside its teacher, several times."""
    reports = []
    for run in range(args.runs):
        out = args.out / f"{student.name}-shipped-{run}"
        dev = args.sst2 / "dev.tsv"
        made = kdcache.ship(
            student, out, int8=True, measure=dev, teacher=args.teacher, limit=args.limit
        )
        made["fidelity"].pop("allowed")
        reports.append({name: value for name, value in made.items() if name != "folder"})
        print(f"{student.name}, run {run + 1} of {args.runs}: {_line(made)}", flush=True)
    return {**reports[-1], "models": _medians([report["models"] for report in reports])}


def _medians(runs: list[Json]) -> Json:
    models: dict[str, Any] = {}
    for name, last in runs[-1].items():
        timed = {figure: [run[name][figure] for run in runs] for figure in TIMED}
        medians = {figure: statistics.median(values) for figure, values in timed.items()}
        models[name] = {**last, **medians, "runs": timed}
    return models


def _line(report: Json) -> str:
    return "; ".join(
        f"{name} {row['bytes'] / 1e6:.1f} MB {row['p50_ms']:.2f} ms {row['accuracy']:.1%}"
        for name, row in report["models"].items()
    )


def main() -> None:
    """Run and write results/ship.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=20_000, help="of the training texts")
    parser.add_argument("--steps", type=int, default=1250, help="of each student, 32 texts each")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="dev texts, all if not given")
    parser.add_argument("--name", default="ship", help="of the file in results/")
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    args = parser.parse_args()
    cache = args.out / "cache.zarr"
    kdcache.build(
        args.sst2 / "train.tsv",
        teacher=args.teacher,
        task="text-classification",
        out=cache,
        limit=args.documents,
        max_length=64,
    )
    students = {
        name: {"layers": layers, **shipped(args, distil(args, cache, layers))}
        for name, layers in STUDENTS.items()
    }
    check(students)
    save(
        args.name,
        {"documents_trained_on": args.documents, "steps": args.steps, "students": students},
    )


def check(students: Json) -> None:
    """Stop before a file is written unless int8 is as small and as true as is promised."""
    for name, report in students.items():
        for prefix in ("", "teacher_"):
            full, small = (report["models"][f"{prefix}{kind}"] for kind in ("fp32", "int8"))
            share = small["bytes"] / full["bytes"]
            if share > 0.30 or small["agreement"] < 0.98 or full["agreement"] < 0.999:
                raise SystemExit(
                    f"{prefix}{name}: int8 has {share:.3f} of the bytes (0.30 is allowed) and "
                    f"agrees with torch on {small['agreement']:.2%} (98% at least)"
                )


if __name__ == "__main__":
    main()
