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

from dataclasses import replace

from gain_intervals import paired
from methods import COMMON, STEPS, Study, asked, asking, hold, recipes
from record import save
from trial import CHOOSING, flags, right

from kdcache.manifest import Json
from kdcache.training.recipe import Recipe

FACTORS = (0.25, 1.0, 4.0)
NAMES = {"methods": "weights", "methods_new": "weights_new"}
"""Of results, by the study whose students they are of."""


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


def run(study: Study, notes: Study, name: str) -> Json:
    """The answers on dev by factor; read from a note if they are there."""
    found, chosen, recipe = notes.kept(name), study.kept(name), study.recipe(name)
    if found or "right" not in chosen or not heavier(recipe, 1.0):
        return found
    right_by = {}
    for factor in FACTORS:
        off = heavier(recipe, factor)
        student = study.way(name).train(study.trial, recipe, chosen["rate"], CHOOSING, *off)
        right_by[f"{factor:g}"] = flags({"dev": study.trial.said(student.folder, "dev")})["dev"]
    found = {"recipe": name, "rate": chosen["rate"], "right": right_by}
    notes.keep(name, found)
    return found


def summary(notes: Study) -> Json:
    """Scores on dev by factor, and how those of other weights differ from those that ship."""
    every = {name: found for name in recipes() if (found := notes.kept(name))}
    rows, better, documents = {}, [], 0
    for name, one in every.items():
        hits = {factor: right([one["right"]], [factor]) for factor in one["right"]}
        others = [factor for factor in hits if factor != "1"]
        gains = {factor: paired(hits["1"], hits[factor]) for factor in others}
        dev = {factor: float(found.mean()) for factor, found in hits.items()}
        rows[name] = {"rate": one["rate"], "dev": dev, "gains": gains}
        preferred = [factor for factor, gain in gains.items() if gain["documents"][0] > 0]
        better += [{"recipe": name, "factor": float(factor)} for factor in preferred]
        documents = hits["1"].size
    return {
        "factors": FACTORS,
        "steps": STEPS,
        "documents": documents,
        "recipes": rows,
        "better": better,
    }


def main() -> None:
    """Run what is left, and write what there is."""
    given = asking(__doc__).parse_args()
    lock = hold(given.out)
    study = asked(given)
    notes = replace(study, name=NAMES[study.name])
    for name in () if given.report else given.recipe or recipes():
        if one := run(study, notes, name):
            shares = {
                factor: digits.count("1") / len(digits) for factor, digits in one["right"].items()
            }
            print(name, shares, flush=True)
    save(notes.name, summary(notes))
    lock.close()


if __name__ == "__main__":
    main()
