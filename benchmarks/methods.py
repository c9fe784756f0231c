"""What each recipe buys on one teacher, one cache and one budget.

    python benchmarks/methods.py --data FOLDER [--recipe NAME ...] [--seeds 3]
    python benchmarks/methods.py --report

FOLDER holds sst2 and reviews. A teacher is taught from the labelled documents of SST-2 and run
once; its cache holds what all recipes need for a student of two layers. Every recipe trains that
student for 300 steps of 32: with each of four learning rates on one seed, of which the best on dev
documents is taken, then with three seeds; and once more without the losses that are its own, to
see whether they change what the student says. Written is results/methods.json. Every recipe's
result is kept in --out: a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gain_corpora import CUTS, corpus
from gain_intervals import Flags, paired
from record import save, spread

import kdcache
from kdcache.building.describe import sizes
from kdcache.demo.encoder import encoder_folder
from kdcache.demo.sentences import write
from kdcache.manifest import Json
from kdcache.signals import parse_all
from kdcache.store import Cache
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.requirements import served_by, signals_of_teacher

LAYERS, STEPS, BATCH = (3, 6), 300, 32
RATES = (1e-4, 3e-4, 6e-4, 1.2e-3)
CHOOSING = 1000  # the seed settings are chosen with, which no result is of
TASK = "text-classification"
ELSEWHERE = ("causal-kd", "mlm-kd", "mkd", "mt-bert", "skdbert", "tinybert-general", "distilbert")
"""Recipes of other tasks, or of several teachers or caches."""
COMMON = ("hard", "kl", "logits")
"""What losses are called that many recipes have; the others are a recipe's own."""


def recipes() -> list[str]:
    """The shipped recipes that train a classifier from one teacher, those compared with first."""
    from kdcache_cli.shipped import read_recipes

    names = [name for name in read_recipes() if name not in ELSEWHERE]
    return sorted(names, key=lambda name: (name not in ("finetune", "kd"), name))


@dataclass(frozen=True)
class Trial:
    """The corpus, the teacher and the cache that all recipes share, in a folder."""

    out: Path

    @classmethod
    def prepare(cls, out: Path, data: Path) -> Trial:
        """Make what is not there yet."""
        trial = cls(out)
        if not (out / "ready").is_file():
            cut = CUTS["sst2"]
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            found = corpus(cut, data / "sst2", 0)
            write(out / "train.csv", found.train)
            write(out / "dev.csv", found.dev)
            for domain, sentences in found.tests.items():
                write(out / f"test-{domain}.csv", sentences)
            kdcache.teach(
                encoder_folder(), out / "train.csv", out=out / "teacher", dev=out / "dev.csv",
                epochs=cut.teacher_epochs, learning_rates=1.5e-4, class_weights="none", seed=0,
                progress=False,
            )  # fmt: skip
            wanted = [load_recipe(name) for name in recipes()]
            kdcache.build(
                out / "train.csv", teacher=out / "teacher", task=TASK, out=out / "cache.zarr",
                signals=signals_of_teacher(wanted, out / "teacher", TASK, len(LAYERS)),
                keep_teacher_weights=True,
            )  # fmt: skip
            (out / "ready").touch()
        return trial

    @property
    def cache(self) -> Cache:
        return kdcache.open_cache(self.out / "cache.zarr")

    @property
    def domains(self) -> list[str]:
        """What students are scored on, home first."""
        names = [path.stem.removeprefix("test-") for path in self.out.glob("test-*.csv")]
        return sorted(names, key=lambda name: (name != "movies", name))

    def train(self, recipe: Recipe, rate: float, seed: int, *overrides: str) -> Any:
        """Train a student of the budget into a folder that is made anew."""
        stages = max(1, len(recipe.stages))
        steps = f"training.max_steps={STEPS // stages}"
        own = [f"stages.{stage.name}.{steps}" for stage in recipe.stages] or [steps]
        shutil.rmtree(self.out / "student", ignore_errors=True)
        return kdcache.train(
            self.out / "cache.zarr", recipe=recipe, out=self.out / "student", lr=rate, seed=seed,
            batch_size=BATCH, init_from_teacher=LAYERS, dev=self.out / "dev.csv", progress=False,
            overrides=[*own, *overrides],
        )  # fmt: skip

    def answers(self, model: Path) -> dict[str, list[tuple[str, str]]]:
        """Labels and predictions of a model, by domain."""
        found = {}
        for domain in self.domains:
            path = self.out / "predictions.csv"
            kdcache.evaluate(
                model, self.out / f"test-{domain}.csv", predictions=path, progress=False
            )
            with path.open(encoding="utf-8") as file:
                found[domain] = [(r["label"], r["prediction"]) for r in csv.DictReader(file)]
        return found


def own_losses(recipe: Recipe) -> Iterator[str]:
    """Overrides that leave out the losses that are a recipe's own."""
    for stage in recipe.in_stages():
        for name, loss in stage.losses.items():
            if name not in COMMON and loss.weight:
                of = f"stages.{stage.name}." if recipe.stages else ""
                yield f"{of}losses.{name}.weight=0"


def one_recipe(trial: Trial, name: str, seeds: int) -> Json:
    """What a recipe gives; kept in the trial's folder, and read from there if it was run before."""
    note = trial.out / f"{name}.json"
    if note.is_file():
        earlier: Json = json.loads(note.read_text())
        return earlier
    begun, recipe = time.perf_counter(), load_recipe(name)
    (served,) = served_by(trial.cache, [recipe], len(LAYERS))
    if served.why:
        return {"recipe": name, "refused": served.why}
    dev = {
        rate: trial.train(recipe, rate, CHOOSING).metrics["dev"]["best"]["value"] for rate in RATES
    }
    rate = max(dev, key=dev.__getitem__)
    answers, scores, seconds = [], [], []
    for seed in range(seeds):
        result = trial.train(recipe, rate, seed)
        seconds.append(result.metrics["step_seconds_median"])
        scores.append(result.metrics["dev"]["best"]["value"])
        answers.append(trial.answers(result.folder))
    found = {
        "recipe": name,
        "rate": rate,
        "dev_by_rate": {f"{rate:g}": value for rate, value in dev.items()},
        "dev": scores,
        "step_seconds": seconds,
        "signals": signals_of_teacher([recipe], trial.out / "teacher", TASK, len(LAYERS)),
        "answers": answers,
        "agreement_without": _without(trial, recipe, rate, answers[0]),
        "seconds": time.perf_counter() - begun,
    }
    note.write_text(json.dumps(found))
    return found


def _without(trial: Trial, recipe: Recipe, rate: float, answers: Json) -> float | None:
    """Share of answers that stay as they are without the losses that are the recipe's own."""
    off = list(own_losses(recipe))
    try:
        other = trial.answers(trial.train(recipe, rate, 0, *off).folder) if off else answers
    except kdcache.KdcacheError:  # they are all it has
        return None
    pairs = [
        pair for domain in answers for pair in zip(answers[domain], other[domain], strict=True)
    ]
    return float(np.mean([a[1] == b[1] for a, b in pairs])) if off else None


def summary(trial: Trial, found: dict[str, Json]) -> Json:
    """A row for each recipe: bytes a document, cost of a step, scores and paired gains."""
    cache, home = trial.cache, trial.domains[0]
    documents = len(cache.plan.docs)
    plain = sizes(cache.plan, {}, cache.shape)["total"]
    rows = {}
    for name, one in found.items():
        if "refused" in one:
            rows[name] = one
            continue
        signals = parse_all(one["signals"])
        row = {
            "rate": one["rate"],
            "dev": spread(one["dev"]),
            "bytes_a_document": (sizes(cache.plan, signals, cache.shape)["total"] - plain)
            / documents,
            "step_of_kd": float(
                np.median(one["step_seconds"]) / np.median(found["kd"]["step_seconds"])
            ),
            "agreement_without": one["agreement_without"],
            "seconds": one["seconds"],
        }
        for where, domains in (("home", [home]), ("away", trial.domains[1:])):
            right = _right(one, domains)
            row[where] = spread(right.mean(1).tolist())
            row[f"{where}_gains"] = {
                other: paired(_right(found[other], domains), right)
                for other in ("finetune", "kd")
                if other in found and other != name
            }
        rows[name] = row
    return {"layers": LAYERS, "steps": STEPS, "batch": BATCH, "rates": RATES, "recipes": rows}


def _right(one: Json, domains: list[str]) -> Flags:
    return np.array(
        [[a == b for domain in domains for a, b in seed[domain]] for seed in one["answers"]]
    )


def main() -> None:
    """Run what is left, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with sst2 and reviews")
    parser.add_argument("--out", type=Path, default=Path("methods"))
    parser.add_argument("--recipe", action="append", choices=recipes())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="only write what was finished")
    given = parser.parse_args()
    if not given.report:
        trial = Trial.prepare(given.out, given.data)
        for name in given.recipe or recipes():
            one = one_recipe(trial, name, given.seeds)
            print(name, one.get("refused") or f"{one['seconds']:.0f} s", flush=True)
    trial = Trial(given.out)
    notes = {name: given.out / f"{name}.json" for name in recipes()}
    found = {name: json.loads(note.read_text()) for name, note in notes.items() if note.is_file()}
    save("methods", summary(trial, found))


if __name__ == "__main__":
    main()
