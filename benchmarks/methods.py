"""What each recipe buys on one teacher, one cache and one budget.

    python benchmarks/methods.py --data FOLDER --masked MODEL [--recipe NAME ...] [--seeds 3]
    python benchmarks/methods.py --data FOLDER --masked MODEL --costs
    python benchmarks/methods.py --data FOLDER --masked MODEL --student bilstm
    python benchmarks/methods.py --report [--student bilstm]

FOLDER holds sst2, reviews and mrpc, MODEL a masked language model with the tokens of MiniLM. A
teacher is taught from the labelled documents of SST-2 and run once; its cache holds what all
recipes need for a student of two layers. Every recipe trains that student for 300 steps of 32: with
each of two learning rates on one seed, of which the better on dev documents is taken, then with
three seeds; and once more without the losses that are its own, to see whether they change what the
student says. Some want more: points, words, or students beside it (`trial_ways.py`); and some are
trained once more with further texts, domains or tasks (`trial_more.py`). --student trains one of
new weights instead (`trial_students.py`); recipes refuse it that want of it what it has not. What a
step costs is measured alone, on a machine that does nothing else: recipes take turns with kd.

Written are results/methods.json, of new students methods_new.json and the like, and a picture in
docs. Every recipe's result is kept in a folder beside, by the teacher's digest: a run that is
stopped goes on where it was. Seconds are those of the processor. One training gives other weights
on another kind of processor, so keep --out, teacher and all.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TextIO

import numpy as np
from gain_intervals import paired
from methods_plot import draw
from record import RESULTS, save, spread
from trial import BATCH, CHOOSING, Trained, Trial, flags, right
from trial_more import MORE, more
from trial_students import KINDS, LAYERS, Kind
from trial_ways import Way, ways

import kdcache
from kdcache.building.describe import sizes
from kdcache.demo.steps import size_of
from kdcache.manifest import Json
from kdcache.signals import parse_all
from kdcache.store import Cache
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.wanted_signals import signals_of_teacher

STEPS = 300
PICTURES = RESULTS.parents[1] / "docs"
COST_STEPS, COST_TURNS = 16, 3  # of a training that is timed
TOGETHER = 3  # recipes that are timed beside one training of kd
ELSEWHERE = ("causal-kd", "mlm-kd", "mkd", "tinybert-general", "distilbert")
"""Recipes of other tasks, or of several tasks at once."""
BESIDE = ("finetune", "kd")
"""Recipes that every other is compared with, of the same teacher."""
COMMON = ("hard", "kl", "logits")
"""What losses are called that many recipes have; the others are a recipe's own."""


def recipes() -> list[str]:
    """The shipped recipes that train one classifier, those compared with first."""
    from kdcache_cli.shipped import read_recipes

    names = [name for name in read_recipes() if name not in ELSEWHERE]
    return sorted(names, key=lambda name: (name not in BESIDE, name))


def without_own(recipe: Recipe) -> list[str]:
    """Overrides that leave out what is a recipe's own; none where that is all it has.

    A stage that has nothing else moves no weight, as if all its losses weighed 0. Of a recipe that
    has soft and hard labels and no more, soft labels are what is its own.
    """
    off, soft, left = [], [], False
    for of, stage in zip(recipe.prefixes, recipe.in_stages(), strict=True):
        heavy = [name for name, loss in stage.losses.items() if loss.weight]
        own = [name for name in heavy if name not in COMMON]
        if own and own == heavy:
            off.append(f"{of}training.learning_rate=0")
            continue
        off += [f"{of}losses.{name}.weight=0" for name in own]
        soft += [f"{of}losses.kl.weight=0"] if {"kl", "hard"} <= set(heavy) else []
        if not own and stage.data.weighting is not None:
            off.append(f"{of}data.example_weights=")
        left = True
    if recipe.inputs is not None:
        off.append("inputs.lam=0")
    return (off or soft) if left else []


@dataclass(frozen=True, kw_only=True)
class Study:
    """What recipes give for one student, in notes of a folder of results.

    Attributes:
        name: of the results.
        kind: of the student.
        own: how those are trained that want more than the trial.
        beside: recipes that every other is compared with; of a step's cost the last.
        best: the better of scores on dev.
    """

    name: str
    kind: Kind
    trial: Trial
    own: Mapping[str, Way]
    beside: tuple[str, ...] = BESIDE
    best: Callable[..., float] = max

    @property
    def rates(self) -> tuple[float, ...]:
        return self.kind.rates

    @property
    def further(self) -> tuple[str, ...]:
        """Rows with more than the corpus, which are trained of the teacher's layers alone."""
        return () if self.kind.student or self.kind.config else MORE

    def way(self, recipe: str) -> Way:
        return self.own.get(recipe, Way())

    @property
    def _notes(self) -> Path:
        """Where notes on this teacher are; those on others, as other machines teach it, beside."""
        return RESULTS / self.name / self.teacher[:8]

    def kept(self, recipe: str) -> Json:
        """What was found of a recipe so far; {} if nothing."""
        note = self._notes / f"{recipe}.json"
        found: Json = json.loads(note.read_text("utf-8")) if note.is_file() else {}
        return found

    def keep(self, recipe: str, found: Json) -> None:
        self._notes.mkdir(parents=True, exist_ok=True)
        note = self._notes / f"{recipe}.json"
        note.write_text(json.dumps(found, indent=1) + "\n", "utf-8")

    @cached_property
    def teacher(self) -> str:
        """The digest of the teacher's weights: results of another one are not compared."""
        weights = (self.trial.out / "teacher" / "model.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest()

    def run_all(self, names: Sequence[str], seeds: int) -> None:
        """Run recipes one after the other, and say what became of each."""
        for name in names:
            one = self.run(name, seeds)
            print(name, one.get("refused") or f"{one['seconds']:.0f} s", flush=True)

    def run(self, name: str, seeds: int) -> Json:
        """What a recipe gives; read from its note if it was run before."""
        found = self.kept(name)
        if "agreement_without" in found or "refused" in found:
            return found
        over = self.way(name).over
        if over and "right" not in self.kept(over):
            raise SystemExit(
                f"{name} is compared with {over}, which has no result yet: run it first"
            )
        try:
            found = found or self._gives(name, seeds)
        except kdcache.KdcacheError as error:
            why = str(error).replace(f"{self.trial.out}/", "")
            found = {"recipe": name, "teacher": self.teacher, "refused": why}
        self.keep(name, found)
        if "refused" not in found:
            begun = time.process_time()
            found["agreement_without"] = self._without(name, found)
            found["seconds"] += time.process_time() - begun
            self.keep(name, found)
        return found

    def recipe(self, name: str) -> Recipe:
        """As it ships, but for what its way has otherwise."""
        way = self.way(name)
        return load_recipe(way.recipe or name, way.overrides)

    def depth(self, name: str) -> int:
        """Layers of the student that have parameters."""
        return 1 if name in self.kind.as_shipped else len(LAYERS)

    def _train(self, name: str) -> Callable[..., Trained]:
        return partial(self.way(name).train, self.trial, self.recipe(name))

    def answers(self, student: Path) -> Json:
        """What is kept of a student's answers, for which others are compared with it."""
        return flags(self.trial.answers(student))

    def _gives(self, name: str, seeds: int) -> Json:
        begun, train = time.process_time(), self._train(name)
        teacher = self.trial.out / "teacher"
        dev = {rate: train(rate, CHOOSING).dev for rate in self.rates}
        rate = self.best(dev, key=dev.__getitem__)
        dev_scores, answers = [], []
        for seed in range(seeds):
            student = train(rate, seed)
            dev_scores.append(student.dev)
            answers.append(self.answers(student.folder))
        return {
            "recipe": name,
            "teacher": self.teacher,
            "rate": rate,
            "dev_by_rate": {f"{rate:g}": value for rate, value in dev.items()},
            "dev": dev_scores,
            "signals": signals_of_teacher(
                [self.recipe(name)], teacher, self.trial.task, self.depth(name)
            ),
            "bytes_beside": sum(size_of(self.trial.out / one) for one in self.way(name).makes),
            "right": answers,
            "seconds": time.process_time() - begun,
        }

    def _without(self, name: str, found: Json) -> float | None:
        """Share of answers that stay as they are without what is the recipe's own.

        Of two classes: answers are the same where both are right or both are wrong. What takes
        more than the corpus is beside what it is compared with.
        """
        recipe, way = self.recipe(name), self.way(name)
        off = without_own(recipe)
        if not (off or way.makes or way.over):
            return None
        if way.over:
            other = self.kept(way.over)["right"][0]
        else:
            train = way.train if off else Trial.train  # from the texts alone
            other = self.answers(train(self.trial, recipe, found["rate"], 0, *off).folder)
        domains = self.trial.domains
        return float(np.mean(right(found["right"][:1], domains) == right([other], domains)))

    def costs(self, names: Sequence[str]) -> None:
        """Add to the notes what a step of each recipe costs, in steps of kd, turn after turn.

        kd, or what stands for it, is measured anew before every few of them; a turn that was
        stopped goes on where it was.
        """
        for turn in range(COST_TURNS):
            left = [name for name in names if self._turns(name) <= turn]
            for place, name in enumerate(left):
                if place % TOGETHER == 0:
                    base = self._step_seconds(self.beside[-1])
                ratio, found = self._step_seconds(name) / base, self.kept(name)
                self.keep(name, found | {"costs": [*found.get("costs", ()), ratio]})
                print(f"{turn + 1}: {name} {ratio:.2f} steps of {self.beside[-1]}", flush=True)

    def _turns(self, name: str) -> int:
        found = self.kept(name)
        return len(found.get("costs", ())) if "right" in found else COST_TURNS

    def _step_seconds(self, name: str) -> float:
        """Median seconds of a step; of a recipe in stages the mean over them, which share steps."""
        recipe = self.recipe(name)
        short = replace(self.trial, steps=COST_STEPS * max(1, len(recipe.stages)))
        metrics = self.way(name).train(short, recipe, self.rates[0], 0).metrics
        each = metrics.get("stages") or {"": metrics}
        return float(np.mean([one["step_seconds_median"] for one in each.values()]))

    def summary(self) -> Json:
        """A row for each recipe: bytes a document, cost of a step, scores and paired gains."""
        every = {name: found for name in (*recipes(), *MORE) if (found := self.kept(name))}
        trained = {name: found for name, found in every.items() if "right" in found}
        beside = {name: trained[name] for name in self.beside if name in trained}
        budget = {"steps": STEPS, "batch": BATCH, "rates": self.rates}
        return {
            "student": self.kind.to_json(),
            **budget,
            "teacher": self._notes.name,
            "hours": sum(one["seconds"] for one in trained.values()) / 3600,
            "recipes": {n: self._row(one, beside) for n, one in trained.items() if n not in MORE},
            "more": {
                name: {"over": over, **self._row(one, beside | {over: trained[over]})}
                for name, one in trained.items()
                if (over := self.way(name).over) in trained
            },
            "refused": {n: every[n]["refused"] for n in sorted(every.keys() - trained.keys())},
        }

    def _row(self, one: Json, beside: Mapping[str, Json]) -> Json:
        domains, way = self.trial.domains, self.way(one["recipe"])
        caches = [kdcache.open_cache(self.trial.out / name) for name in way.caches]
        signals = sum(bytes_of(cache, one["signals"]) for cache in caches) * way.teachers
        documents = sum(len(cache.plan.docs) for cache in caches)
        row = {
            "rate": one["rate"],
            "dev": spread(one["dev"]),
            "documents": documents,
            "bytes_a_document": (signals + one["bytes_beside"]) / documents,
            "step_of_kd": float(np.median(one["costs"])) if "costs" in one else None,
            "agreement_without": one.get("agreement_without"),
            "seconds": one["seconds"],
        }
        for where, scored in (("home", domains[:1]), ("away", domains[1:])):
            hits = right(one["right"], scored)
            row[where] = spread(hits.mean(1).tolist())
            row[f"{where}_gains"] = {
                other: paired(right(found["right"], scored), hits)
                for other, found in beside.items()
                if other != one["recipe"]
            }
        return row


def bytes_of(cache: Cache, signals: Sequence[str]) -> int:
    """What some signals take of a cache of these documents."""
    plain, whole = (
        sizes(cache.plan, asked, cache.shape)["total"] for asked in ({}, parse_all(signals))
    )
    return int(whole - plain)


def hold(out: Path) -> TextIO:
    """Keep a second run out of the folder, for they would train over each other's students."""
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another run is in {out}: give each a folder of its own") from None
    return lock


def asking(about: str) -> argparse.ArgumentParser:
    """What every script is asked that trains students of this trial."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with sst2, reviews and mrpc")
    parser.add_argument("--out", type=Path, default=Path("methods"), help="teacher, cache, student")
    parser.add_argument("--masked", type=Path, help="a masked language model's folder")
    parser.add_argument("--recipe", action="append", choices=[*recipes(), *MORE])
    parser.add_argument("--student", choices=KINDS, default="layers", help="of the teacher, or new")
    parser.add_argument("--report", action="store_true", help="only write what was finished")
    return parser


def asked(given: argparse.Namespace) -> Study:
    """The study of the students asked for, with its trial made unless a report is all there is."""
    kind, trial = KINDS[given.student], Trial(out=given.out, layers=LAYERS, steps=STEPS)
    study = Study(
        name=kind.study,
        kind=kind,
        trial=trial,
        own=ways(given.masked) | more(given.masked, given.data),
    )
    own = {**study.own, **dict.fromkeys(kind.as_shipped, Way())}
    if not given.report:
        trial.prepare(given.data, [study.recipe(name) for name in recipes()])
        trial = replace(trial, new=kind.made(given.out))
    return replace(study, trial=trial, own=own)


def main() -> None:
    """Run what is left, and write what there is."""
    parser = asking(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--costs", action="store_true", help="only measure what a step costs")
    given = parser.parse_args()
    lock, study = hold(given.out), asked(given)
    names = given.recipe or [*recipes(), *study.further]
    if not (given.report or given.costs):
        study.run_all(names, given.seeds)
    if given.costs:
        study.costs([name for name in names if name not in MORE])
    found = study.summary()
    save(study.name, found)
    draw(PICTURES / f"{study.name}.png", found["recipes"], study.kind.title)
    lock.close()


if __name__ == "__main__":
    main()
