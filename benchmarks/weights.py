"""What a recipe's own losses weigh, on documents of dev: a quarter of what ships, that, four times.

    python benchmarks/weights.py --data FOLDER --masked MODEL [--out FOLDER] [--recipe NAME ...]
    python benchmarks/weights.py --report [--new]

The trial, its teacher and its students are those of `methods.py`, --new ones too, whose --out is
taken; the learning rate is the one it chose. Every recipe is trained with all its own losses
lighter, as they ship and heavier, on the seed that settings are chosen with. A weight counts as
better where the paired interval of its answers on dev documents is above zero: one in forty does by
chance. Written is results/weights.json, or weights_new.json.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from gain_intervals import paired
from methods import COMMON, LAYERS, NEW, STEPS, Study, hold, recipes
from record import RESULTS, save
from trial import CHOOSING, Trial
from trial_ways import ways

import kdcache
from kdcache.manifest import Json
from kdcache.training.recipe import Recipe

FACTORS = (0.25, 1.0, 4.0)
NAMES = {"methods": "weights", "methods_new": "weights_new"}


def heavier(recipe: Recipe, factor: float) -> list[str]:
    """Overrides that multiply the weights of a recipe's own losses; none where nothing is weighed.

    A stage that has one kind of loss only is left as it is: an optimizer that divides by the size
    of gradients takes the same steps. Of soft and hard labels alone, soft labels are the own.
    """
    found, soft = [], []
    for of, stage in zip(recipe.prefixes, recipe.in_stages(), strict=True):
        weights = {name: loss.weight for name, loss in stage.losses.items() if loss.weight}
        own = [name for name in weights if name not in COMMON]
        if len(own) < len(weights) or len(own) > 1:
            scaled = own if len(own) < len(weights) else own[1:]
            found += [f"{of}losses.{name}.weight={weights[name] * factor}" for name in scaled]
        if {"kl", "hard"} <= weights.keys():
            soft.append(f"{of}losses.kl.weight={weights['kl'] * factor}")
    return found or soft


def answers(folder: Path, trial: Trial) -> str:
    """A digit for each document of dev: 1 where a student is right."""
    path = trial.out / "predictions.csv"
    kdcache.evaluate(folder, trial.out / "dev.csv", predictions=path, progress=False)
    with path.open(encoding="utf-8") as file:
        return "".join(str(int(r["label"] == r["prediction"])) for r in csv.DictReader(file))


def note_of(study: Study, recipe: str) -> Path:
    """Where what was found of a recipe, from this teacher, is kept."""
    return RESULTS / NAMES[study.name] / study.teacher[:8] / f"{recipe}.json"


def run(study: Study, name: str) -> Json:
    """The answers by factor; read from a note if they are there."""
    note = note_of(study, name)
    if note.is_file():
        found: Json = json.loads(note.read_text("utf-8"))
        return found
    chosen = study.kept(name)
    if "right" not in chosen or not heavier(study.recipe(name), 1.0):
        return {}
    way, recipe, right = study.way(name), study.recipe(name), {}
    for factor in FACTORS:
        off = heavier(recipe, factor)
        student = way.train(study.trial, recipe, chosen["rate"], CHOOSING, *off)
        right[f"{factor:g}"] = answers(student.folder, study.trial)
    found = {"recipe": name, "rate": chosen["rate"], "right": right}
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def summary(study: Study) -> Json:
    """Scores on dev by factor, and how those of other weights differ from those that ship."""
    rows = {}
    for name in recipes():
        note = note_of(study, name)
        if not note.is_file():
            continue
        one = json.loads(note.read_text("utf-8"))
        hits = {
            factor: np.array([[digit == "1" for digit in right]])
            for factor, right in one["right"].items()
        }
        rows[name] = {
            "rate": one["rate"],
            "dev": {factor: float(flags.mean()) for factor, flags in hits.items()},
            "gains": {
                factor: paired(hits["1"], flags) for factor, flags in hits.items() if factor != "1"
            },
        }
    better = [
        {"recipe": name, "factor": float(factor)}
        for name, row in rows.items()
        for factor, gain in row["gains"].items()
        if gain["documents"][0] > 0
    ]
    documents = len(next(iter(hits.values()))[0])
    return {
        "factors": FACTORS,
        "steps": STEPS,
        "documents": documents,
        "recipes": rows,
        "better": better,
    }


def main() -> None:
    """Run what is left, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with sst2 and reviews")
    parser.add_argument("--out", type=Path, default=Path("methods"), help="that of methods.py")
    parser.add_argument("--masked", type=Path, help="a masked language model's folder")
    parser.add_argument("--recipe", action="append", choices=recipes())
    parser.add_argument("--new", action="store_true", help="students of new weights")
    parser.add_argument("--report", action="store_true", help="only write what was finished")
    given = parser.parse_args()
    new = NEW if given.new else ""
    study = Study(
        name="methods_new" if new else "methods",
        trial=Trial(out=given.out, layers=LAYERS, steps=STEPS, new=new),
        own=ways(given.masked),
    )
    if not given.report:
        lock = hold(given.out)
        study.trial.prepare(given.data, [study.recipe(name) for name in recipes()])
        for name in given.recipe or recipes():
            if one := run(study, name):
                print(
                    name,
                    {f: hits.count("1") / len(hits) for f, hits in one["right"].items()},
                    flush=True,
                )
        lock.close()
    save(NAMES[study.name], summary(study))


if __name__ == "__main__":
    main()
