"""What each recipe buys on one teacher, one cache and one budget.

    python benchmarks/methods.py --data FOLDER --masked MODEL [--recipe NAME ...] [--seeds 3]
    python benchmarks/methods.py --data FOLDER --masked MODEL --costs
    python benchmarks/methods.py --report

FOLDER holds sst2 and reviews, MODEL a masked language model with the tokens of MiniLM. A teacher
is taught from the labelled documents of SST-2 and run once; its cache holds what all recipes need
for a student of two layers. Every recipe trains that student for 300 steps of 32: with each of two
learning rates on one seed, of which the better on dev documents is taken, then with three seeds;
and once more without the losses that are its own, to see whether they change what the student says.
Some want more: points, words, or students beside it (`trial_ways.py`). What a step costs is
measured by itself, on a machine that does nothing else: every recipe takes turns with kd.

Written is results/methods.json. Every recipe's result is kept in results/methods: a run that is
stopped goes on where it was, as long as the teacher comes out the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from gain_intervals import paired
from record import RESULTS, save, spread
from trial import BATCH, CHOOSING, TASK, Trained, Trial, flags, right
from trial_ways import Way, bytes_of, ways

import kdcache
from kdcache.building.describe import sizes
from kdcache.manifest import Json
from kdcache.signals import parse_all
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.requirements import signals_of_teacher

LAYERS, STEPS = (3, 6), 300
RATES = (2e-4, 6e-4)
COST_STEPS, COST_TURNS = 16, 3  # of a training that is timed
TOGETHER = 3  # recipes that are timed beside one training of kd
ELSEWHERE = ("causal-kd", "mlm-kd", "mkd", "mt-bert", "skdbert", "tinybert-general", "distilbert")
"""Recipes of other tasks, or of several teachers or caches."""
COMMON = ("hard", "kl", "logits")
"""What losses are called that many recipes have; the others are a recipe's own."""
NOTES = RESULTS / "methods"


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
    if recipe.inputs is not None:
        yield "inputs.lam=0"


def kept(name: str) -> Json:
    """What was found of a recipe so far; empty if nothing was."""
    note = NOTES / f"{name}.json"
    found: Json = json.loads(note.read_text("utf-8")) if note.is_file() else {}
    return found


def keep(name: str, found: Json) -> None:
    NOTES.mkdir(exist_ok=True)
    (NOTES / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def teacher_of(trial: Trial) -> str:
    """The digest of the teacher's weights: results of another one are not compared."""
    weights = (trial.out / "teacher" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest()


def hold(out: Path) -> TextIO:
    """Keep a second run out of the folder, for they would train over each other's students."""
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another run is in {out}: give each a folder of its own") from None
    return lock


def one_recipe(trial: Trial, name: str, way: Way, seeds: int) -> Json:
    """What a recipe gives; read from its note if it was run before, with this teacher."""
    found, teacher = kept(name), teacher_of(trial)
    if found.get("teacher") == teacher:
        return found
    begun, recipe = time.perf_counter(), load_recipe(name)
    train = partial(way.train, trial, recipe)
    dev = {rate: train(rate, CHOOSING).dev for rate in RATES}
    rate = max(dev, key=dev.__getitem__)
    first, answers, scores = None, [], []
    for seed in range(seeds):
        result = train(rate, seed)
        scores.append(result.dev)
        said = trial.answers(result.folder)
        first = first or said
        answers.append(flags(said))
    assert first is not None
    found = {
        "recipe": name,
        "teacher": teacher,
        "rate": rate,
        "dev_by_rate": {f"{rate:g}": value for rate, value in dev.items()},
        "dev": scores,
        "signals": signals_of_teacher([recipe], trial.out / "teacher", TASK, len(LAYERS)),
        "bytes_beside": sum(bytes_of(trial.out / place) for place in way.makes),
        "right": answers,
        "agreement_without": _without(trial, partial(train, rate, 0), recipe, first),
        "seconds": time.perf_counter() - begun,
    }
    keep(name, found)
    return found


def _without(
    trial: Trial, train: Callable[..., Trained], recipe: Recipe, answers: Json
) -> float | None:
    """Share of answers that stay as they are without the losses that are the recipe's own."""
    off = list(own_losses(recipe))
    try:
        other = trial.answers(train(*off).folder) if off else answers
    except kdcache.KdcacheError:  # they are all it has
        return None
    pairs = [
        pair for domain in answers for pair in zip(answers[domain], other[domain], strict=True)
    ]
    return float(np.mean([a[1] == b[1] for a, b in pairs])) if off else None


def costs(trial: Trial, names: Sequence[str], own: Mapping[str, Way]) -> None:
    """Add to the notes what a step of each recipe costs, in steps of kd, one turn after the other.

    kd is measured anew before every few of them; a turn that was stopped goes on where it was.
    """
    for turn in range(COST_TURNS):
        left = [name for name in names if kept(name) and len(kept(name).get("costs", ())) <= turn]
        for place, name in enumerate(left):
            if place % TOGETHER == 0:
                base = _step_seconds(trial, "kd", Way())
            ratio = _step_seconds(trial, name, own.get(name, Way())) / base
            keep(name, kept(name) | {"costs": [*kept(name).get("costs", ()), ratio]})
            print(f"{turn + 1}: {name} {ratio:.2f} steps of kd", flush=True)


def _step_seconds(trial: Trial, name: str, way: Way) -> float:
    """Median seconds of a step; of a recipe in stages the mean over them, which share the steps."""
    recipe = load_recipe(name)
    short = dataclasses.replace(trial, steps=COST_STEPS * max(1, len(recipe.stages)))
    metrics = way.train(short, recipe, RATES[0], 0).metrics
    each = metrics.get("stages") or {"": metrics}
    return float(np.mean([one["step_seconds_median"] for one in each.values()]))


def summary(trial: Trial, found: dict[str, Json]) -> Json:
    """A row for each recipe: bytes a document, cost of a step, scores and paired gains."""
    cache, home = trial.cache, trial.domains[0]
    documents = len(cache.plan.docs)
    plain = sizes(cache.plan, {}, cache.shape)["total"]
    rows = {}
    for name, one in found.items():
        signals = parse_all(one["signals"])
        row = {
            "rate": one["rate"],
            "dev": spread(one["dev"]),
            "bytes_a_document": (
                sizes(cache.plan, signals, cache.shape)["total"] - plain + one["bytes_beside"]
            )
            / documents,
            "step_of_kd": float(np.median(one["costs"])) if "costs" in one else None,
            "agreement_without": one["agreement_without"],
            "seconds": one["seconds"],
        }
        for where, domains in (("home", [home]), ("away", trial.domains[1:])):
            hits = right(one["right"], domains)
            row[where] = spread(hits.mean(1).tolist())
            row[f"{where}_gains"] = {
                other: paired(right(found[other]["right"], domains), hits)
                for other in ("finetune", "kd")
                if other in found and other != name
            }
        rows[name] = row
    return {"layers": LAYERS, "steps": STEPS, "batch": BATCH, "rates": RATES, "recipes": rows}


def main() -> None:
    """Run what is left, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with sst2 and reviews")
    parser.add_argument("--out", type=Path, default=Path("methods"), help="teacher, cache, student")
    parser.add_argument("--masked", type=Path, help="a masked language model's folder")
    parser.add_argument("--recipe", action="append", choices=recipes())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--costs", action="store_true", help="only measure what a step costs")
    parser.add_argument("--report", action="store_true", help="only write what was finished")
    given = parser.parse_args()
    trial = Trial(out=given.out, layers=LAYERS, steps=STEPS)
    names, own = given.recipe or recipes(), ways(given.masked)
    lock = hold(given.out)
    if not given.report:
        trial.prepare(given.data, [load_recipe(name) for name in recipes()])
    for name in names if not (given.report or given.costs) else ():
        one = one_recipe(trial, name, own.get(name, Way()), given.seeds)
        print(name, f"{one['seconds']:.0f} s", flush=True)
    if given.costs:
        costs(trial, names, own)
    teacher = teacher_of(trial)
    found = {name: kept(name) for name in recipes()}
    lock.close()
    save("methods", summary(trial, {k: v for k, v in found.items() if v.get("teacher") == teacher}))


if __name__ == "__main__":
    main()
