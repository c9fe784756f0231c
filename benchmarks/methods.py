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
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gain_intervals import paired
from record import save, spread
from trial import BATCH, CHOOSING, TASK, Trial, dev_score, right

import kdcache
from kdcache.building.describe import sizes
from kdcache.manifest import Json
from kdcache.signals import parse_all
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.requirements import served_by, signals_of_teacher

LAYERS, STEPS = (3, 6), 300
RATES = (1e-4, 3e-4, 6e-4, 1.2e-3)
ELSEWHERE = ("causal-kd", "mlm-kd", "mkd", "mt-bert", "skdbert", "tinybert-general", "distilbert")
"""Recipes of other tasks, or of several teachers or caches."""
COMMON = ("hard", "kl", "logits")
"""What losses are called that many recipes have; the others are a recipe's own."""


def recipes() -> list[str]:
    """The shipped recipes that train a classifier from one teacher, those compared with first."""
    from kdcache_cli.shipped import read_recipes

    names = [name for name in read_recipes() if name not in ELSEWHERE]
    return sorted(names, key=lambda name: (name not in ("finetune", "kd"), name))


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
    dev = {rate: dev_score(trial.train(recipe, rate, CHOOSING)) for rate in RATES}
    rate = max(dev, key=dev.__getitem__)
    answers, scores, seconds = [], [], []
    for seed in range(seeds):
        result = trial.train(recipe, rate, seed)
        seconds.append(result.metrics["step_seconds_median"])
        scores.append(dev_score(result))
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
            flags = right(one["answers"], domains)
            row[where] = spread(flags.mean(1).tolist())
            row[f"{where}_gains"] = {
                other: paired(right(found[other]["answers"], domains), flags)
                for other in ("finetune", "kd")
                if other in found and other != name
            }
        rows[name] = row
    return {"layers": LAYERS, "steps": STEPS, "batch": BATCH, "rates": RATES, "recipes": rows}


def main() -> None:
    """Run what is left, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with sst2 and reviews")
    parser.add_argument("--out", type=Path, default=Path("methods"))
    parser.add_argument("--recipe", action="append", choices=recipes())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="only write what was finished")
    given = parser.parse_args()
    trial = Trial(out=given.out, layers=LAYERS, steps=STEPS)
    if not given.report:
        trial.prepare(given.data, [load_recipe(name) for name in recipes()])
        for name in given.recipe or recipes():
            one = one_recipe(trial, name, given.seeds)
            print(name, one.get("refused") or f"{one['seconds']:.0f} s", flush=True)
    notes = {name: given.out / f"{name}.json" for name in recipes()}
    found = {name: json.loads(note.read_text()) for name, note in notes.items() if note.is_file()}
    save("methods", summary(trial, found))


if __name__ == "__main__":
    main()
