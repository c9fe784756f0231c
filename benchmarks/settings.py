"""What other settings of a recipe score on documents of dev than those that the comparison has.

    python benchmarks/settings.py --data FOLDER --masked MODEL [--out FOLDER] [--recipe NAME ...]
    python benchmarks/settings.py ... --setting longer [--setting ...]
    python benchmarks/settings.py --report [--student bilstm]

The trial, its teacher and its students are those of `methods.py`, new ones too, whose --out is
taken. Every recipe is trained as there, with the learning rate that was chosen, and once more with
each of the settings, on the seed that settings are chosen with. A setting counts as better where
the paired interval of its answers on dev documents is above zero: one in forty does by chance.
Written is results/settings.json; of new students settings_new.json and the like.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gain_intervals import paired
from methods import COMMON, STEPS, Study, asked, asking, hold, recipes
from record import save
from trial import CHOOSING, flags, right

from kdcache.manifest import Json
from kdcache.training.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """What is otherwise than in the comparison.

    Attributes:
        weight: what the weights of a recipe's own losses are multiplied by.
        beyond: whether the rate is the next one, past the better of the two that were tried.
        length: what the steps are multiplied by.
    """

    weight: float = 1.0
    beyond: bool = False
    length: int = 1


COMPARED = "compared"
SETTINGS = {
    COMPARED: Setting(),
    "lighter": Setting(weight=0.25),
    "heavier": Setting(weight=4.0),
    "beyond": Setting(beyond=True),
    "longer": Setting(length=2),
}


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


def rate_of(setting: Setting, chosen: float, rates: Iterable[float]) -> float:
    """The chosen rate, or the one beyond it, as far as the two that it was chosen of lie apart."""
    low, high = sorted(rates)
    beyond = high * high / low if chosen == high else low * low / high
    return beyond if setting.beyond else chosen


def run(study: Study, notes: Study, name: str, settings: Iterable[str]) -> Json:
    """The answers on dev by setting; those that a note has are not asked again."""
    found, chosen, recipe = notes.kept(name), study.kept(name), study.recipe(name)
    if "right" not in chosen:
        return found
    found = found or {"recipe": name, "rate": chosen["rate"], "right": {}}
    for called in settings:
        setting = SETTINGS[called]
        off = heavier(recipe, setting.weight) if setting.weight != 1 else []
        if called in found["right"] or not (off or setting.weight == 1):
            continue
        trial = replace(study.trial, steps=STEPS * setting.length)
        rate = rate_of(setting, chosen["rate"], study.rates)
        student = study.way(name).train(trial, recipe, rate, CHOOSING, *off)
        found["right"][called] = flags({"dev": trial.said(student.folder, "dev")})["dev"]
        notes.keep(name, found)
    return found


def summary(study: Study, notes: Study) -> Json:
    """Scores on dev by setting, and how those of others differ from those of the comparison."""
    every = {name: found for name in recipes() if (found := notes.kept(name))}
    rows, better, documents = {}, [], 0
    for name, one in every.items():
        answers = {called: one["right"][called] for called in SETTINGS if called in one["right"]}
        hits = {called: right([answers], [called]) for called in answers}
        base = hits.pop(COMPARED)
        gains = {called: paired(base, found) for called, found in hits.items()}
        preferred = [called for called, gain in gains.items() if gain["documents"][0] > 0]
        beyond = rate_of(SETTINGS["beyond"], one["rate"], study.rates)
        rows[name] = {
            "rate": one["rate"], "beyond": beyond, "dev": float(base.mean()), "gains": gains
        }  # fmt: skip
        better += [{"recipe": name, "setting": called} for called in preferred]
        documents = base.size
    return {
        "settings": {name: vars(setting) for name, setting in SETTINGS.items()},
        "steps": STEPS,
        "documents": documents,
        "recipes": rows,
        "better": better,
    }


def main() -> None:
    """Run what is left, and write what there is."""
    parser = asking(__doc__)
    others = [name for name in SETTINGS if name != COMPARED]
    parser.add_argument("--setting", action="append", choices=others, help="and no others")
    given = parser.parse_args()
    lock = hold(given.out)
    study = asked(given)
    notes = replace(study, name=f"settings{study.kind.suffix}")
    for name in () if given.report else given.recipe or recipes():
        if one := run(study, notes, name, [COMPARED, *(given.setting or others)]):
            answers = one["right"].items()
            shares = {called: digits.count("1") / len(digits) for called, digits in answers}
            print(name, shares, flush=True)
    save(notes.name, summary(study, notes))
    lock.close()


if __name__ == "__main__":
    main()
