"""How recipes are trained in a trial that want more than its cache and a student of the teacher's.

What is made for a recipe (a second cache, say) is made once and kept in the trial's folder.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import AutoTokenizer
from trial import EPOCHS, Trained, Trial, taught

import kdcache
from kdcache.demo.encoder import encoder_folder
from kdcache.students import Together
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.wanted_signals import signals_of_teacher


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a recipe is trained.

    Attributes:
        train: called with a trial and what `Trial.train` takes.
        recipe: the shipped one, where what is compared is called otherwise.
        caches: in the trial's folder, of whose signals it reads.
        makes: caches in the trial's folder that it makes beside these.
        teachers: whose signals it reads, each as many bytes.
        overrides: settings that are otherwise than they ship.
        over: what it is compared with, beside that which all are.
    """

    train: Callable[..., Trained] = Trial.train
    recipe: str = ""
    caches: tuple[str, ...] = ("cache.zarr",)
    makes: tuple[str, ...] = ()
    teachers: int = 1
    overrides: tuple[str, ...] = ()
    over: str = ""


PIECES = 4928  # as in the paper
BESIDE = ((2, 6), (4, 6))
"""Layers of students beside that of the trial's layers, which would be the same at first."""


def named(folder: Path | None, recipe: Recipe, what: str) -> Path:
    """A folder that a recipe needs and the command line names; exits where it does not."""
    if folder is None:
        raise SystemExit(f"{recipe.name} needs {what}")
    return folder


def once(folder: Path, make: Callable[[], object]) -> None:
    """Make what is in a folder unless that was finished; what was stopped goes on."""
    done = folder.with_suffix(".done")
    if not done.exists():
        make()
        done.touch()


def beside_texts(trial: Trial, name: str, make: Callable[[Path], object]) -> Path:
    """The trial's cache merged with a second one over its texts; what was stopped goes on."""
    second, both = trial.out / f"{name}.zarr", trial.out / f"texts-and-{name}.zarr"

    def merged() -> None:
        make(second)
        kdcache.merge([trial.out / "cache.zarr", second], both)

    once(both, merged)
    return both


def at_boundary(trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str) -> Trained:
    """From the texts and from points on the teacher's decision boundary."""

    def make(out: Path) -> None:
        kdcache.ascend(trial.cache, teacher=trial.out / "teacher", out=out, progress=False)

    return trial.train(recipe, rate, seed, *off, caches=[beside_texts(trial, "boundary", make)])


def with_words(
    masked: Path | None, trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str
) -> Trained:
    """From texts whose words a masked language model answered."""

    def make(out: Path) -> None:
        model = named(masked, recipe, "--masked FOLDER: a masked language model")
        kdcache.build(
            trial.out / "cache.zarr", teacher=model, task=trial.task,
            teacher_task="masked-lm", out=out, progress=False,
        )  # fmt: skip

    return trial.train(recipe, rate, seed, *off, caches=[beside_texts(trial, "words", make)])


SEVERAL = ("mt-bert", "skdbert", "rl-kd")
"""Recipes that are for several teachers."""


def of_two(
    teach: Callable[[Path], Path],
    trial: Trial,
    recipe: Recipe,
    rate: float,
    seed: int,
    *off: str,
) -> Trained:
    """From two teachers, the second taught as the first was, with another seed."""

    def make(out: Path) -> None:
        second = teach(trial.out / "second")
        several = [load_recipe(name) for name in SEVERAL]
        kdcache.build(
            trial.out / "cache.zarr", teacher=second, task=trial.task, out=out, progress=False,
            signals=signals_of_teacher(several, second, trial.task, len(trial.layers)),
        )  # fmt: skip

    return trial.train(recipe, rate, seed, *off, caches=[beside_texts(trial, "second", make)])


def beside(count: int, trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str) -> Trained:
    """The first of several students that learn from each other."""
    make = partial(kdcache.make_student, trial.cache)
    if trial.new:
        made = [make(**trial.new, seed=seed + place) for place in range(count)]
    else:
        made = [make(init_from_teacher=one) for one in (trial.layers, *BESIDE)[:count]]
    return trial.train(recipe, rate, seed, *off, student=Together(made))


ONE_DOMAIN = "stages.intermediate.data.example_weights.domain="
"""Nothing tells domains from each other: reviews of films are one."""
OF_FOUR_LAYERS = "stages.patient.losses.hidden.layer_map=1:1,2:3,3:4"
"""Two blocks used twice are four layers, into which the teacher's six do not divide."""


def with_pieces(trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str) -> Trained:
    """With a vocabulary of its own, cut from the texts; students of the teacher's layers refuse."""
    folder = trial.out / "pieces"
    if not folder.exists():
        with (trial.out / "train.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts = [text for row in rows for name, text in row.items() if name != "label"]
        theirs = AutoTokenizer.from_pretrained(encoder_folder())
        theirs.train_new_from_iterator(texts, PIECES).save_pretrained(folder)
    return trial.train(recipe, rate, seed, f"student.tokenizer={folder}", *off)


def in_rounds(trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str) -> Trained:
    """Half of the steps at the texts; the others there and at points up the student's error."""
    half = replace(trial, steps=trial.steps // 2)
    warm, points = trial.out / "warm", trial.out / "points.zarr"
    if not trial.resume:
        for place in (warm, points):
            shutil.rmtree(place, ignore_errors=True)
    if not warm.exists():
        shutil.move(half.train(load_recipe("kd-mse"), rate, seed, *off).folder, warm)
        kdcache.ascend(
            trial.cache, teacher=trial.out / "teacher", student=warm, out=points, progress=False
        )
        half = replace(half, resume=False)
    caches = [trial.out / "cache.zarr", points]
    return half.train(recipe, rate, seed, *off, caches=caches, student=warm)


def ways(masked: Path | None) -> dict[str, Way]:
    """By the recipe's name; `masked` is the folder of a masked language model."""
    two = Way(train=partial(of_two, partial(taught, seed=1, epochs=EPOCHS)), teachers=2)
    return {
        **dict.fromkeys(SEVERAL, two),
        "bss": Way(train=at_boundary, makes=("boundary.zarr",)),
        "text-smoothing": Way(train=partial(with_words, masked), makes=("words.zarr",)),
        "dml": Way(train=partial(beside, 2)),
        "mutual": Way(train=partial(beside, 2)),
        "one": Way(train=partial(beside, 3)),
        "pea-kd": Way(overrides=(OF_FOUR_LAYERS,)),
        "mixed-vocab": Way(train=with_pieces),
        "meta-kd": Way(overrides=(ONE_DOMAIN,)),
        "backward-kd": Way(train=in_rounds, makes=("points.zarr",)),
    }
