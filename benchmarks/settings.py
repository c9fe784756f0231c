"""What other settings of a recipe score on documents of dev than those that the comparison has.

    python benchmarks/settings.py --data FOLDER --masked MODEL [--out FOLDER] [--recipe NAME ...]
    python benchmarks/settings.py ... --setting longer [--setting ...]
    python benchmarks/settings.py ... --confirm
    python benchmarks/settings.py --report [--student bilstm]

The trial, its teacher and its students are those of `methods.py`, new ones too, whose --out is
taken. Every recipe is trained as there, with the learning rate that was chosen, and once more with
each of the settings, on the seed that settings are chosen with. A setting counts as better where
the paired interval of its answers on dev documents is above zero: one in forty does by chance, so
--confirm asks three other seeds of those that do.
Written is results/settings.json; of new students settings_new.json and the like.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gain_intervals import paired, told
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


COMPARED, AGAIN = "compared", (CHOOSING + 1, CHOOSING + 2, CHOOSING + 3)
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


@dataclass(frozen=True)
class Asked:
    """A recipe whose settings are asked; what is known of it is in a note."""

    study: Study
    notes: Study
    name: str

    @property
    def found(self) -> Json:
        """What the note has, or an empty one; {} of a recipe that the comparison has not."""
        chosen = self.study.kept(self.name)
        if "right" not in chosen:
            return {}
        empty = {"recipe": self.name, "rate": chosen["rate"], "right": {}, "again": {}}
        return empty | self.notes.kept(self.name)

    def run(self, settings: Iterable[str]) -> None:
        """Train with each setting; those that the note has are not asked again."""
        for called in settings:
            self._keep(called, CHOOSING)

    def confirm(self) -> None:
        """Ask other seeds of what dev prefers, and of what it is preferred to."""
        for called in preferred(gains_of(self.found["right"])):
            for seed in AGAIN:
                self._keep(COMPARED, seed)
                self._keep(called, seed)

    def _keep(self, called: str, seed: int) -> None:
        setting, recipe = SETTINGS[called], self.study.recipe(self.name)
        off = heavier(recipe, setting.weight) if setting.weight != 1 else []
        note = self.found
        answers = note["right"] if seed == CHOOSING else note["again"].setdefault(str(seed), {})
        if called in answers or not (off or setting.weight == 1):
            return
        study = self.study
        trial = replace(study.trial, steps=STEPS * setting.length)
        rate = rate_of(setting, note["rate"], study.rates)
        student = study.way(self.name).train(trial, recipe, rate, seed, *off)
        answers[called] = flags({"dev": trial.said(student.folder, "dev")})["dev"]
        self.notes.keep(self.name, note)


def gains_of(answers: Json) -> Json:
    """How answers of each setting differ from those of the comparison, paired by document."""
    base = right([answers], [COMPARED])
    others = [called for called in SETTINGS if called in answers and called != COMPARED]
    return {called: paired(base, right([answers], [called])) for called in others}


def preferred(gains: Json) -> list[str]:
    """Settings whose interval over documents is above zero."""
    return [called for called, gain in gains.items() if gain["documents"][0] > 0]


def summary(study: Study, notes: Study) -> Json:
    """Scores on dev by setting, and how those of others differ from those of the comparison."""
    rows, better, documents = {}, [], 0
    for name in recipes():
        if not (one := notes.kept(name)):
            continue
        gains, base = gains_of(one["right"]), right([one["right"]], [COMPARED])
        beyond = rate_of(SETTINGS["beyond"], one["rate"], study.rates)
        rows[name] = {
            "rate": one["rate"], "beyond": beyond, "dev": float(base.mean()), "gains": gains
        }  # fmt: skip
        for called in preferred(gains):
            seeds = [found for found in one.get("again", {}).values() if called in found]
            again = paired(right(seeds, [COMPARED]), right(seeds, [called])) if seeds else None
            better.append({"recipe": name, "setting": called, "again": again})
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
    parser.add_argument("--confirm", action="store_true", help="ask other seeds of what is better")
    given = parser.parse_args()
    lock = hold(given.out)
    study = asked(given)
    notes = replace(study, name=f"settings{study.kind.suffix}")
    for name in () if given.report else given.recipe or recipes():
        of = Asked(study, notes, name)
        if not of.found:
            continue
        if given.confirm:
            of.confirm()
        else:
            of.run([COMPARED, *(given.setting or others)])
            gains = gains_of(of.found["right"]).items()
            print(name, *(f"{called} {told(gain)}" for called, gain in gains), flush=True)
    save(notes.name, summary(study, notes))
    lock.close()


if __name__ == "__main__":
    main()
