"""One corpus, one teacher, one cache and one budget in a folder: what recipes are compared on."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gain_corpora import CUTS, corpus
from gain_intervals import Flags

import kdcache
from kdcache.demo.encoder import encoder_folder
from kdcache.demo.sentences import write
from kdcache.manifest import Json
from kdcache.store import Cache
from kdcache.students import Together
from kdcache.training.recipe import Recipe
from kdcache.training.wanted_signals import signals_of_teacher

BATCH = 32
CHOOSING = 1000  # the seed settings are chosen with, which no result is of
TASK = "text-classification"
EPOCHS = CUTS["sst2"].teacher_epochs


def taught(folder: Path, *, seed: int, **options: Any) -> Path:
    """Fine-tune the demo's encoder on the texts beside a folder, if that is left; the folder."""
    if (folder / "metrics.json").is_file():
        return folder
    kdcache.teach(
        encoder_folder(), folder.parent / "train.csv", out=folder, dev=folder.parent / "dev.csv",
        learning_rates=1.5e-4, class_weights="none", seed=seed, progress=False, **options,
    )  # fmt: skip
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with a column for each key, of which all rows have the same."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A student, what it scored on dev by its best weights, and what its training said."""

    folder: Path
    dev: float
    metrics: Json


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The corpus, the teacher and the cache that all recipes share, in a folder.

    Attributes:
        layers: of the teacher, that every student starts as.
        steps: that a student is trained for.
        batch: documents of a step.
        task: of the teacher and its students.
        dev_every: steps between two scores on dev, by which weights are chosen.
        new: a student of new weights in the place of these layers, as `kdcache.train` has it:
            {"student": "bilstm"}.
        resume: whether a training goes on that was stopped, and else begins anew.
    """

    out: Path
    layers: tuple[int, ...]
    steps: int
    new: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    batch: int = BATCH
    task: str = TASK
    dev_every: int | str = "epoch"

    def prepare(self, data: Path, recipes: Sequence[Recipe]) -> Trial:
        """Make what is not there yet: SST-2 of a folder, and a cache that serves the recipes.

        Exits where what is there was made of other data: its scores would be taken for those.
        """
        out = self.out
        found = corpus(CUTS["sst2"], data / "sst2", 0)
        if (out / "ready").is_file():
            write(out / "asked.csv", found.train)
            if (out / "asked.csv").read_bytes() != (out / "train.csv").read_bytes():
                raise SystemExit(f"{out} was made of other data than {data}: name another --out")
            return self
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write(out / "train.csv", found.train)
        write(out / "dev.csv", found.dev)
        for domain, sentences in found.tests.items():
            write(out / f"test-{domain}.csv", sentences)
        teacher = taught(out / "teacher", seed=0, epochs=EPOCHS)
        kdcache.build(
            out / "train.csv", teacher=teacher, task=self.task, out=out / "cache.zarr",
            signals=signals_of_teacher(recipes, teacher, self.task, len(self.layers)),
            keep_teacher_weights=True, progress=False,
        )  # fmt: skip
        (out / "ready").touch()
        return self

    @property
    def cache(self) -> Cache:
        return kdcache.open_cache(self.out / "cache.zarr")

    @property
    def domains(self) -> list[str]:
        """What students are scored on, home first."""
        names = [path.stem.removeprefix("test-") for path in self.out.glob("test-*.csv")]
        return sorted(names, key=lambda name: (name != "movies", name))

    def train(
        self,
        recipe: Recipe,
        rate: float,
        seed: int,
        *overrides: str,
        caches: Sequence[Path] = (),
        student: Path | Together | None = None,
    ) -> Trained:
        """Train a student of the budget into the folder `student`.

        Args:
            caches: what it is trained from, in the place of the trial's.
            student: in the place of the trial's. Of several that are trained together the first is
                looked at, which is not chosen on dev while it trains.
        """
        given = {"student": student} if student is not None else self.new
        stages = recipe.prefixes
        each = {"max_steps": self.steps // len(stages), "learning_rate": rate}
        own = [f"{of}training.{name}={value}" for of in stages for name, value in each.items()]
        self.clear()
        together = isinstance(student, Together)
        scored = {} if together else {"dev": self.out / "dev.csv", "dev_every": self.dev_every}
        result = kdcache.train(
            list(caches) or self.out / "cache.zarr", recipe=recipe, out=self.out / "student",
            seed=seed, batch_size=self.batch, **(given or {"init_from_teacher": self.layers}),
            **scored, progress=False, overrides=[*own, *overrides], resume=self.resume,
        )  # fmt: skip
        if not together:
            best = result.metrics["dev"]["best"]["value"]
            return Trained(folder=result.folder, dev=float(best), metrics=result.metrics)
        return self.scored(result.folder / "student-1", result.metrics)

    def clear(self) -> None:
        """Remove the student that was trained before, unless its training goes on."""
        if not self.resume:
            shutil.rmtree(self.out / "student", ignore_errors=True)

    def scored(self, student: Path, metrics: Json) -> Trained:
        """A student that was not scored on dev while it was trained."""
        found = kdcache.evaluate(student, self.out / "dev.csv", progress=False)
        return Trained(folder=student, dev=float(found["accuracy"]), metrics=metrics)

    def answers(self, model: Path) -> dict[str, list[tuple[str, str]]]:
        """Labels and predictions of a model, by domain."""
        return {domain: self.said(model, f"test-{domain}") for domain in self.domains}

    def said(self, model: Path, texts: str) -> list[tuple[str, str]]:
        """Labels and predictions of a model of a file of texts, by its name without the ending."""
        path = self.out / "predictions.csv"
        kdcache.evaluate(model, self.out / f"{texts}.csv", predictions=path, progress=False)
        with path.open(encoding="utf-8") as file:
            return [(r["label"], r["prediction"]) for r in csv.DictReader(file)]


def flags(answers: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, str]:
    """A digit for each document of each domain: 1 where label and prediction are the same."""
    return {
        domain: "".join(str(int(label == said)) for label, said in pairs)
        for domain, pairs in answers.items()
    }


def right(seeds: Sequence[Mapping[str, str]], domains: Sequence[str]) -> Flags:
    """What the student of each seed has right in some domains, [seeds, documents]."""
    return np.array([[digit == "1" for name in domains for digit in one[name]] for one in seeds])
