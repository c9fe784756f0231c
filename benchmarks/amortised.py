"""Hours until so many students are trained: the teacher in the loop, or once and then a cache.

    python benchmarks/amortised.py [--out FOLDER]

On the demo's corpus, with its teacher. Students of one to four layers are trained both ways by the
recipe `kd`, on the same documents in the same order; 1, 2, 4 and 8 of them are summed. Writes
results/amortised.json and docs/amortised.png. Beside it: what a cached step costs beside plain
fine-tuning of the same student, and what a teacher of BERT-base's shape costs (of random weights:
its time does not depend on them).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
from cached_vs_online import step_times
from in_the_loop import train_once
from record import save

from kdcache.building.builder import build
from kdcache.demo import reviews
from kdcache.demo.encoder import encoder_folder
from kdcache.demo.law import Costs
from kdcache.demo.loop import forward_seconds
from kdcache.demo.picture import CACHE, GREY, LOOP, Row, draw
from kdcache.demo.sentences import write
from kdcache.evaluation.evaluator import evaluate
from kdcache.models import load_teacher
from kdcache.progress import quiet
from kdcache.store import Cache
from kdcache.teaching import teach
from kdcache.training.recipe import load_recipe

TASK: Any = "text-classification"
PICTURE = Path(__file__).parents[1] / "docs" / "amortised.png"
SIZES = ((3, 6), (6,), (2, 4, 6), (2, 3, 5, 6))  # layers of the teacher; each with two seeds
EPOCHS, BATCH, RATE, MAX_LENGTH = 2, 32, 3e-4, 64
COUNTS = (1, 2, 4, 8)


def make_teacher(out: Path, archive: Path, sentences: int) -> Path:
    """Corpus files and a teacher fitted to the labels of all training sentences."""
    sizes = {"train": sentences, "labels": sentences, "dev": 400, "home": 800, "away": 400}
    corpus = reviews.corpus(archive, seed=0, **sizes)
    write(out / "train.csv", corpus.train)
    write(out / "dev.csv", corpus.dev)
    write(out / "test.csv", corpus.tests["movies"])
    return teach(
        encoder_folder(),
        out / "train.csv",
        out=out / "teacher",
        dev=out / "dev.csv",
        epochs=2,
        learning_rates=2e-4,
        max_length=MAX_LENGTH,
    ).folder


def run_once(teacher: Path, out: Path) -> tuple[Cache, float]:
    """Build the cache; the cache and the seconds it took, loading of the teacher included."""
    started = time.perf_counter()
    cache = build(
        out / "train.csv", teacher=teacher, task=TASK, out=out / "cache.zarr", max_length=MAX_LENGTH
    )
    return cache, time.perf_counter() - started


def students(count: int) -> list[tuple[tuple[int, ...], int]]:
    """Layers and seed of each student, sizes in turn."""
    return [(SIZES[i % len(SIZES)], i // len(SIZES)) for i in range(count)]


def warm_up(cache: Cache, teacher: Any, out: Path) -> None:
    """Two steps both ways: kernels are compiled when they are first used, and that is no cost."""
    recipe = load_recipe(
        "kd",
        ["student.init_from_teacher=[6]", "training.max_steps=2", "training.save_strategy=no"],
    )
    for online in (None, (teacher, None)):
        train_once(cache, recipe, out / "student", online)


def train_both(
    cache: Cache, teacher: Any, layers: tuple[int, ...], seed: int, out: Path
) -> dict[str, Any]:
    """Train a student from the cache and with the teacher in the loop; score both."""
    recipe = load_recipe(
        "kd",
        [
            f"student.init_from_teacher={list(layers)}",
            f"training.seed={seed}",
            f"training.num_train_epochs={EPOCHS}",
            f"training.learning_rate={RATE}",
            f"training.per_device_train_batch_size={BATCH}",
            "training.save_strategy=no",
        ],
    )
    found: dict[str, Any] = {"layers": list(layers), "seed": seed}
    for name, online in (("cached", None), ("in_the_loop", (teacher, None))):
        started = time.perf_counter()
        run = train_once(cache, recipe, out / "student", online)
        seconds = time.perf_counter() - started
        score = evaluate(out / "student", out / "test.csv", max_length=MAX_LENGTH)
        found[name] = {
            "seconds": seconds,
            "step_seconds": run["step_seconds"],
            "teacher_seconds": run["teacher_seconds"],
            "accuracy": score["accuracy"],
            "interval": score["accuracy_interval"],
        }
    print(found, flush=True)
    return found


def totals(runs: list[dict[str, Any]], built: float) -> dict[str, list[tuple[int, float]]]:
    """Seconds until the first 1, 2, 4 and 8 students are trained, both ways."""
    start = {"cached": built, "in_the_loop": 0.0}
    return {
        way: [
            (n, start[way] + sum(run[way]["seconds"] for run in runs[:n]))
            for n in COUNTS
            if n <= len(runs)
        ]
        for way in start
    }


def costs_of(runs: list[dict[str, Any]], built: float) -> Costs:
    """The mean student of the runs, and what the teacher adds to it."""
    cached, looped = (
        sum(run[way]["seconds"] for run in runs) / len(runs) for way in ("cached", "in_the_loop")
    )
    return Costs(build=built, teacher=looped - cached, student=cached, epochs=EPOCHS)


def large_teacher(cache: Cache, student: float) -> dict[str, Any]:
    """Seconds of a step of a teacher of BERT-base's shape, and what the law makes of it."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig()).eval()
    seconds = forward_seconds(
        model, cache, batch=BATCH, seed=0, hidden=False, batches=8, progress=quiet
    )
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "teacher_step_seconds": seconds,
        "student_step_seconds": student,
        "saving": (seconds + student) / student,
    }


def rows(runs: list[dict[str, Any]], teacher: dict[str, Any]) -> list[Row]:
    """The right panel: the teacher, and each student trained both ways."""
    own = {"accuracy": teacher["accuracy"], "interval": teacher["accuracy_interval"]}
    found = [Row("teacher, 6 layers", [own], (GREY,))]
    for run in sorted(runs, key=lambda run: (-len(run["layers"]), run["seed"])):
        count = len(run["layers"])
        name = f"{count} layer{'s' if count > 1 else ''}, seed {run['seed']}"
        found.append(Row(name, [run["cached"], run["in_the_loop"]], (CACHE, LOOP)))
    return found


def main() -> None:
    """Train, time, check that both ways agree, and write figures and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=8)
    parser.add_argument("--sentences", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=3, help="of the short runs of the pair")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--dry", action="store_true", help="write no figures")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    teacher = make_teacher(out, reviews.fetch(), args.sentences)
    cache, built = run_once(teacher, out)
    loaded = load_teacher(teacher, task=TASK)
    warm_up(cache, loaded, out)
    chosen = students(args.students)
    runs = [train_both(cache, loaded, layers, seed, out) for layers, seed in chosen]
    costs, sums = costs_of(runs, built), totals(runs, built)
    pair = step_times(cache, loaded, out, args.repeats, recipe="kd", student="[3,6]", k=None)
    figures = {
        "sentences": args.sentences,
        "epochs": EPOCHS,
        "costs": {**asdict(costs), "saving": costs.saving, "crossing": costs.crossing},
        "crossing_epochs": costs.crossing * EPOCHS,
        "totals": sums,
        "law_at_30": {"cached": costs.cached(30), "in_the_loop": costs.in_the_loop(30)},
        "runs": runs,
        "largest_accuracy_difference": max(
            abs(run["cached"]["accuracy"] - run["in_the_loop"]["accuracy"]) for run in runs
        ),
        "pair": pair,
        "large_teacher": large_teacher(cache, pair["step_seconds"]["cached"]),
    }
    print({k: v for k, v in figures.items() if k not in ("runs", "pair")})
    own = evaluate(teacher, out / "test.csv", max_length=MAX_LENGTH)
    kinds = ["from the cache", "teacher in the loop"]
    draw(args.picture, costs, sums["cached"], sums["in_the_loop"], rows(runs, own), kinds)
    if not args.dry:
        save("amortised", figures)


if __name__ == "__main__":
    main()
