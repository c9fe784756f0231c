"""Every recipe on every kind of corpus: whether it trains, resumes, and changes the student.

    python benchmarks/everywhere.py --data FOLDER --masked MODEL [--place NAME ...]

FOLDER holds mrpc, banking77, sst2 and wikitext2, MODEL a masked language model with the tokens of
MiniLM. For each place (pairs of sentences, 77 classes, few labels, values, masked tokens) a teacher
of six layers is taught, or MODEL taken, and run once. Every recipe trains two of its layers for a
few steps. Training is stopped by SIGTERM behind its first checkpoint, in a process of its own, and
resumed in this one: the weights are to be those of the training that nobody stopped, bit for bit.
It is done once more without what is the recipe's own, to see whether that changes what a student
says.
A recipe that refuses a place is recorded with its words.

Written is results/everywhere.json; every recipe's result is kept in --out, so that a run that is
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from everywhere_places import PLACES, Place, Row
from methods import without_own
from record import save
from transformers import AutoModelForMaskedLM, AutoTokenizer
from trial import Trained, Trial, taught, write_rows
from trial_more import with_heads
from trial_students import KINDS, LAYERS
from trial_ways import SEVERAL, Way, of_two, ways, with_pieces

import kdcache
from kdcache.manifest import Json
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.requirements import beside_signals
from kdcache.training.wanted_signals import signals_of_teacher
from kdcache_cli.shipped import read_recipes

RATE = 6e-4
DEV, TEST = 100, 400  # documents
WAIT, NAP = 300.0, 0.05  # seconds until a training has a checkpoint, and between two looks
NEAR = 0.01  # values are the same that lie so near each other, in their standard deviations
MASKED = 0.15
STOPPED = -signal.SIGINT  # what a script ends with that SIGTERM made raise KeyboardInterrupt


def _fits(recipe: Recipe, *asked: Any) -> bool:
    """Whether signals of one teacher serve a recipe."""
    try:
        return not beside_signals([recipe], signals_of_teacher([recipe], *asked), *asked)
    except kdcache.KdcacheError:
        return False


def parts(place: Place, rows: list[Row]) -> dict[str, list[Row]]:
    """Documents of dev, test and training, drawn by a seed; labels of the last as the place has."""
    random.Random(0).shuffle(rows)
    ends = (0, DEV, DEV + TEST, DEV + TEST + place.train)
    for row in rows[ends[2] + place.labels :] if place.labels is not None else ():
        row["label"] = ""
    bounds = pairwise(ends)
    return dict(zip(("dev", "test", "train"), (rows[a:b] for a, b in bounds), strict=True))


def of_new_weights(trial: Trial, *asked: Any) -> Trained:
    """A student that begins with no layer of the teacher's, by words of its own."""
    return with_pieces(replace(trial, new=KINDS["bilstm"].student), *asked)


class Said(NamedTuple):
    """What a student says of the test documents: answers [N], and probabilities [N, C] if any."""

    answers: Any
    chances: Any = None

    def beside(self, other: Said) -> Json:
        """Share of answers that are the same, and how far probabilities are apart: half of the sum
        of differences, mean over documents.
        """
        if self.answers.dtype.kind == "f":
            near = abs(self.answers - other.answers) < NEAR * self.answers.std()
            return {"agreement_without": float(near.mean())}
        same = float(np.mean(self.answers == other.answers))
        if self.chances is None:
            return {"agreement_without": same}
        apart = float(abs(self.chances - other.chances).sum(1).mean() / 2)
        return {"agreement_without": same, "probability_moved": apart}


@dataclass(frozen=True, kw_only=True)
class Trip:
    """What is done with the recipes at a place."""

    name: str
    out: Path
    masked: Path

    @property
    def place(self) -> Place:
        return PLACES[self.name]

    def way(self, recipe: str) -> Way:
        found, teach = dict(ways(self.masked)), self.place.teach
        two = Way()  # of a model that is taken as it is there is no second
        if teach is not None:
            two = Way(train=partial(of_two, partial(taught, seed=1, **teach)))
        found |= {**dict.fromkeys(SEVERAL, two), "mixed-vocab": Way(train=of_new_weights)}
        if self.place.second:
            places = {"here": self.out, "first": self.out.parent / next(iter(PLACES))}
            caches = {head: out / "cache.zarr" for head, out in places.items()}
            found["mkd"] = Way(train=partial(with_heads, caches))
        return found.get(recipe, Way())

    def recipe(self, name: str) -> Recipe:
        """As its way has it, without soft labels where the teacher gives values."""
        recipe = load_recipe(name, self.way(name).overrides)
        off = [
            f"{of}losses.{loss}.weight=0"
            for of, stage in zip(recipe.prefixes, recipe.in_stages(), strict=True)
            for loss in stage.losses
            if loss == "kl" and self.place.values and self._others(stage, loss)
        ]
        return load_recipe(recipe, [*off, *self.place.settings.get(name, ())])

    @staticmethod
    def _others(stage: Recipe, loss: str) -> bool:
        return any(other.weight for name, other in stage.losses.items() if name != loss)

    def prepare(self, data: Path) -> None:
        """Make the corpus, the teacher and the cache, if they are not there."""
        out, place = self.out, self.place
        if (out / "ready").is_file():
            return
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in parts(place, place.rows(data)).items():
            write_rows(out / f"{name}.csv", rows)
        teacher = self.masked
        if place.teach is not None:
            teacher = taught(out / "teacher", seed=0, **place.teach)
        asked: Any = (teacher, place.task, len(LAYERS))
        recipes = [one for one in map(self.recipe, read_recipes()) if _fits(one, *asked)]
        kdcache.build(
            out / "train.csv", teacher=teacher, task=place.task, out=out / "cache.zarr",
            signals=signals_of_teacher(recipes, *asked), keep_teacher_weights=True, progress=False,
        )  # fmt: skip
        (out / "ready").touch()

    def train(self, name: str, *off: str, resume: bool = False) -> Path:
        """Train by a recipe, which writes a few checkpoints; the folder of the student."""
        recipe = self.recipe(name)
        steps = self.place.longer.get(name, self.place.steps)
        each = max(1, steps // len(recipe.prefixes) // 2)
        kept = {"save_strategy": "steps", "save_steps": each}
        own = [
            f"{of}training.{key}={value}" for of in recipe.prefixes for key, value in kept.items()
        ]
        trial = Trial(
            out=self.out,
            layers=LAYERS,
            steps=steps,
            batch=self.place.batch,
            task=self.place.task,
            resume=resume,
        )
        return self.way(name).train(trial, recipe, RATE, 0, *own, *off).folder

    def visit(self, name: str) -> Json:
        """What there is to say of a recipe here."""
        note = self.out / "notes" / f"{name}.json"
        if note.is_file():
            found: Json = json.loads(note.read_text("utf-8"))
            return found
        begun = time.perf_counter()
        try:
            found = self._tried(name)
        except kdcache.KdcacheError as error:
            found = {"refused": str(error).replace(f"{self.out}/", "")}
        found["seconds"] = time.perf_counter() - begun
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        return found

    def _tried(self, name: str) -> Json:
        said = self._said(self.train(name))
        whole = self._weights()
        stopped = self._stopped(name)
        self.train(name, resume=True)
        found: Json = {
            "stopped": stopped,
            "same_bits": stopped == STOPPED and self._weights() == whole,
            "agreement_without": None,
        }
        off = without_own(self.recipe(name))
        if off:
            found |= said.beside(self._said(self.train(name, *off)))
        return found

    def _weights(self) -> dict[str, str]:
        """Digests of all weights that a training has left."""
        student = self.out / "student"
        return {
            str(path.relative_to(student)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(student.rglob("*.safetensors"))
        }

    def _child(self, name: str) -> subprocess.Popen[bytes]:
        asked = ["--data", ".", "--masked", str(self.masked), "--out", str(self.out.parent)]
        log = (self.out / "child.log").open("ab")
        return subprocess.Popen(
            [sys.executable, __file__, *asked, "--place", self.name, "--recipe", name, "--child"],
            stdout=log, stderr=log,
        )  # fmt: skip

    def _stopped(self, name: str) -> int:
        """Train in a process that is sent SIGTERM when it has a checkpoint; its exit status."""
        shutil.rmtree(self.out / "student", ignore_errors=True)
        before = time.time()
        child = self._child(name)
        while child.poll() is None and time.time() - before < WAIT:
            with suppress(FileNotFoundError):  # of a checkpoint that gives way to the next
                if any((self.out / "student").rglob("trainer_state.json")):
                    child.send_signal(signal.SIGTERM)
                    break
            time.sleep(NAP)
        return child.wait()

    def _said(self, student: Path) -> Said:
        if self.place.teach is None:
            return Said(np.array(_words(student, self.out / "test.csv")))
        path = self.out / "predictions.csv"
        kdcache.evaluate(student, self.out / "test.csv", predictions=path, progress=False)
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if self.place.values:
            return Said(np.array([float(row["prediction"]) for row in rows]))
        chances = [[float(v) for k, v in row.items() if k.startswith("probab")] for row in rows]
        return Said(np.array([row["prediction"] for row in rows]), np.array(chances))


@torch.no_grad()
def _words(student: Path, file: Path) -> list[int]:
    """The likeliest tokens at masked places of some paragraphs."""
    model = AutoModelForMaskedLM.from_pretrained(student).eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    draw = random.Random(0)
    said: list[int] = []
    with file.open(encoding="utf-8") as rows:
        texts = [row["text"] for row in csv.DictReader(rows)]
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=128)["input_ids"]
        hidden = [place for place in range(1, len(ids) - 1) if draw.random() < MASKED]
        asked = torch.tensor([ids])
        asked[0, hidden] = tokenizer.mask_token_id
        said += model(input_ids=asked).logits[0, hidden].argmax(-1).tolist()
    return said


def main() -> None:
    """Go to every place with every recipe, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of corpora")
    parser.add_argument("--masked", type=Path, required=True, help="a masked language model")
    parser.add_argument("--out", type=Path, default=Path("everywhere"))
    parser.add_argument("--place", action="append", choices=list(PLACES))
    parser.add_argument("--recipe", action="append", choices=list(read_recipes()))
    parser.add_argument("--report", action="store_true", help="only write what was finished")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.recipe or list(read_recipes())
    trips = [
        Trip(name=place, out=given.out.resolve() / place.replace(" ", "-"), masked=given.masked)
        for place in given.place or PLACES
    ]
    if given.child:
        trips[0].train(names[0])
        return
    for trip in trips if not given.report else ():
        trip.prepare(given.data)
        for name in names:
            found = trip.visit(name)
            print(trip.name, name, json.dumps(found), flush=True)
    if given.place or given.recipe:
        return
    found = {
        trip.name: {
            "steps": trip.place.steps,
            "batch": trip.place.batch,
            "longer": dict(trip.place.longer),
            "settings": {name: list(own) for name, own in trip.place.settings.items()},
            "recipes": {
                name: trip.visit(name)
                for name in names
                if (trip.out / "notes" / f"{name}.json").is_file()
            },
        }
        for trip in trips
    }
    save("everywhere", {"rate": RATE, "places": found})


if __name__ == "__main__":
    main()
