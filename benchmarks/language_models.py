"""What recipes of language models buy on one teacher, one cache and one budget.

    python benchmarks/language_models.py --data FOLDER --masked MODEL [--model masked ...]
    python benchmarks/language_models.py --data FOLDER --masked MODEL --costs
    python benchmarks/language_models.py --report

FOLDER holds wikitext2 and reviews, MODEL a masked language model. It is the teacher of students
that learn from paragraphs of WikiText-2; a causal one of four layers is made of the same part of it
(`causal_teacher.py`), of which its students have a third. Each recipe trains two of its teacher's
layers for 300 steps of 16 windows of at most 64 tokens, with each of two learning rates on one
seed, of which that of fewer nats on dev documents is taken, and then with three seeds. Scored are
tokens that the task hides or asks next, in other paragraphs and in product reviews.

Written is results/language_models.json. What is kept, and where, is as with `methods.py`.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from causal_teacher import make
from everywhere_places import Row, paragraphs
from gain_corpora import AWAY, product_reviews
from gain_intervals import paired
from methods import STEPS, Study, bytes_of, hold
from record import save, spread
from trial import Trial, write_rows
from trial_students import Kind

import kdcache
from kdcache.manifest import Json
from kdcache.training.recipe import load_recipe
from kdcache.training.wanted_signals import signals_of_teacher

NAME, BATCH, LENGTH = "language_models", 16, 64
DEV, HOME = 60, 500  # documents
TEACHER_STEPS = 1200
DOMAINS = ("home", "away")
HARD = "finetune"
"""The recipe that all others are compared with: no teacher."""

Texts = list[str]


@dataclass(frozen=True)
class Corpus:
    """Texts to learn from, of which a teacher may take more, to choose by and to be scored on."""

    train: Texts
    dev: Texts
    home: Texts


def _wikipedia(data: Path) -> Corpus:
    """Paragraphs of WikiText-2: the test part is learnt from, the valid part scored on."""
    learnt, scored = (_shuffled(paragraphs(data, part)) for part in ("test", "valid"))
    return Corpus(train=learnt, dev=scored[:DEV], home=scored[DEV : DEV + HOME])


def _shuffled(rows: list[Row]) -> Texts:
    """The text of each row once, in an order of its own."""
    once = sorted({row["text"] for row in rows})
    random.Random(0).shuffle(once)
    return once


@dataclass(frozen=True, kw_only=True)
class Language:
    """A teacher, its task and its students.

    Attributes:
        train: documents that students learn from.
        teacher: from a folder to write, the texts to learn and the model that was named.
        recipes: those that are compared, of which the first has no teacher.
    """

    task: str
    layers: tuple[int, ...]
    rates: tuple[float, float]
    train: int
    teacher: Callable[[Path, Texts, Path], object]
    recipes: tuple[str, ...]


def _copied(out: Path, lines: Texts, model: Path) -> object:
    out.mkdir()
    for file in model.iterdir():
        shutil.copyfile(file, out / file.name)
    return out


def _made(out: Path, lines: Texts, model: Path) -> object:
    return make(out, lines, TEACHER_STEPS)


LANGUAGES = {
    "masked": Language(
        task="masked-lm",
        layers=(3, 6),
        rates=(2e-4, 6e-4),
        train=1500,
        teacher=_copied,
        recipes=(HARD, "mlm-kd", "distilbert", "tinybert-general"),
    ),
    "causal": Language(
        task="causal-lm",
        layers=(2, 4),
        rates=(5e-4, 2e-3),
        train=600,
        teacher=_made,
        recipes=(HARD, "causal-kd"),
    ),
}
"""By the name that the script is asked for."""


@dataclass(frozen=True, kw_only=True)
class Spoken(Study):
    """Recipes of one language model. `right` has of every seed and domain three numbers for each
    document: its tokens that are scored, those that the student has right, and its nats.
    """

    language: Language

    def prepare(self, data: Path, model: Path) -> None:
        """Make the corpus, the teacher and the cache, if they are not there."""
        out, language = self.trial.out, self.language
        if (out / "ready").is_file():
            self.require_made_of(model)
            return
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        corpus = _wikipedia(data)
        assert len(corpus.train) >= language.train, f"{len(corpus.train)} documents to learn from"
        away = [one.text for kind in product_reviews(data).values() for one in kind[: AWAY // 2]]
        parts = {"train": corpus.train[: language.train], "dev": corpus.dev}
        tests = {"test-home": corpus.home, "test-away": away}
        for name, lines in parts.items():
            write_rows(out / f"{name}.csv", [{"text": text} for text in lines])
        for name, lines in tests.items():
            rows = [{"text": text, "number": place} for place, text in enumerate(lines)]
            write_rows(out / f"{name}.csv", rows)
        language.teacher(out / "teacher", corpus.train, model)
        recipes = [load_recipe(name) for name in language.recipes]
        kdcache.build(
            out / "train.csv", teacher=out / "teacher", task=language.task, out=out / "cache.zarr",
            signals=signals_of_teacher(
                recipes, out / "teacher", language.task, len(language.layers)
            ),
            max_length=LENGTH, keep_teacher_weights=True, progress=False,
        )  # fmt: skip
        (out / "ready").touch()

    def require_made_of(self, model: Path) -> None:
        """Exit where what is there is of another masked language model."""
        if self.language.teacher is _copied:
            one, other = (
                (folder / "model.safetensors").read_bytes()
                for folder in (self.trial.out / "teacher", model)
            )
            if one != other:
                raise SystemExit(
                    f"{self.trial.out} has another teacher than {model}: name an --out"
                )

    def answers(self, student: Path) -> Json:
        """Tokens, tokens that are right, and nats of each document of each domain."""
        return {domain: self._scored(student, domain) for domain in DOMAINS}

    def _scored(self, model: Path, domain: str) -> list[list[float]]:
        file = self.trial.out / f"test-{domain}.csv"
        told = kdcache.evaluate(
            model, file, text_columns=["text"], by="number", max_length=LENGTH, progress=False
        )
        each = [row["scores"] for row in told["slices"]["number"]["rows"] if row["scores"]]
        return [
            [one["rows"], round(one["rows"] * one["accuracy"]), one["rows"] * one["cross_entropy"]]
            for one in each
        ]

    def _without(self, name: str, found: Json) -> None:
        """None: `everywhere.py` tells what is a recipe's own of all that language models take."""

    def summary(self) -> Json:
        """A row for each recipe, with the teacher's own scores beside."""
        notes = {name: self.kept(name) for name in self.language.recipes}
        trained = {name: note for name, note in notes.items() if "right" in note}
        return {
            "task": self.language.task,
            "teacher": self._notes.name,
            "layers": self.language.layers,
            "rates": self.rates,
            "teacher_scores": self._told([self._teacher_said()]),
            "recipes": {name: self._row(one, trained) for name, one in trained.items()},
        }

    def _teacher_said(self) -> Json:
        """What the teacher answers; kept beside the recipes."""
        found = self.kept("teacher")
        if not found:
            found = {"right": self.answers(self.trial.out / "teacher")}
            self.keep("teacher", found)
        return found["right"]

    def _row(self, one: Json, beside: Mapping[str, Json]) -> Json:
        cache = self.trial.cache
        signals = bytes_of(cache, one["signals"])
        row = {
            "rate": one["rate"],
            "dev": spread(one["dev"]),
            "bytes_a_token": signals / cache.plan.tokens,
            "step_of_hard": float(np.median(one["costs"])) if "costs" in one else None,
            "seconds": one["seconds"],
            **self._told(one["right"]),
        }
        if one["recipe"] != HARD and HARD in beside:
            base = beside[HARD]["right"]
            for domain in DOMAINS:
                (base_right, base_nats), (own_right, own_nats) = (
                    [shares(seeds, domain, place) for place in (1, 2)]
                    for seeds in (base, one["right"])
                )
                row[domain]["gains"] = {
                    "accuracy": paired(base_right, own_right),
                    "nats_less": paired(own_nats, base_nats),
                }
        return row

    @staticmethod
    def _told(seeds: list[Json]) -> Json:
        return {
            domain: {
                name: spread(shares(seeds, domain, place).mean(1).tolist())
                for name, place in (("accuracy", 1), ("nats", 2))
            }
            for domain in DOMAINS
        }


def shares(seeds: list[Json], domain: str, place: int) -> Any:
    """What each document adds to a mean over tokens, [seeds, documents]: their mean is that one."""
    found = np.array([one[domain] for one in seeds], np.float64)
    return found[:, :, place] / found[:, :, 0].mean(1, keepdims=True)


def study_of(name: str, out: Path) -> Spoken:
    """The study of one language model, in a folder of its own."""
    language = LANGUAGES[name]
    kind = Kind(study=NAME, title=f"Two layers of a {name} language model", rates=language.rates)
    trial = Trial(
        out=out / name, layers=language.layers, steps=STEPS, batch=BATCH, task=language.task
    )
    return Spoken(
        name=NAME, kind=kind, trial=trial, own={}, beside=(HARD,), best=min, language=language
    )


def main() -> None:
    """Run what is left, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with wikitext2 and reviews")
    parser.add_argument("--out", type=Path, default=Path(NAME), help="teachers, caches, students")
    parser.add_argument("--masked", type=Path, help="a masked language model's folder")
    parser.add_argument("--model", action="append", choices=LANGUAGES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--costs", action="store_true", help="only measure what a step costs")
    parser.add_argument("--report", action="store_true", help="only write what was finished")
    given = parser.parse_args()
    for name in () if given.report else given.model or LANGUAGES:
        study, lock = study_of(name, given.out), hold(given.out / f"{name}-lock")
        study.prepare(given.data, given.masked)
        if given.costs:
            study.costs(study.language.recipes)
        else:
            study.run_all(study.language.recipes, given.seeds)
        lock.close()
    if given.report:
        found = {name: study_of(name, given.out).summary() for name in LANGUAGES}
        budget = {"steps": STEPS, "batch": BATCH, "max_length": LENGTH}
        save(NAME, {**budget, "models": found})


if __name__ == "__main__":
    main()
