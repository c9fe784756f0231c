"""How recipes are trained in a trial whose cache is not all that is learnt from.

Texts that `kdcache augment` makes of the corpus, reviews of further domains, a second task: each
is made once and kept in the trial's folder.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from everywhere_places import pairs
from gain_corpora import further_reviews
from trial import Trained, Trial, taught, write_rows
from trial_ways import Way, named, once

import kdcache
from kdcache.demo.sentences import unlabelled
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.wanted_signals import signals_of_teacher

SAMPLES = 2  # texts made of each, at most: alike ones count once
REVIEWS, LABELS = 500, 200  # of each further domain, and how many of them keep their label
EPOCHS = 3  # of the second task's teacher
HERE, THERE = "sst2", "mrpc"


def served(trial: Trial, *names: str) -> list[str]:
    """The signals of the trial's teacher that serve some recipes."""
    recipes = map(load_recipe, names)
    return signals_of_teacher(recipes, trial.out / "teacher", trial.task, len(trial.layers))


def as_often(trial: Trial) -> Trial:
    """Scored on dev as often as rows are that learn from the corpus alone, at each epoch of it."""
    return replace(trial, dev_every=math.ceil(len(trial.cache.plan.docs) / trial.batch))


def augmented(
    masked: Path | None, trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str
) -> Trained:
    """From the texts, and from those that a masked language model makes of them."""
    texts, second = trial.out / "augmented.jsonl", trial.out / "augmented.zarr"

    def make() -> None:
        model = named(masked, recipe, "--masked FOLDER: a masked language model")
        if not texts.exists():
            kdcache.augment(
                trial.out / "train.csv", masked_lm=model, out=texts, samples=SAMPLES,
                progress=False,
            )  # fmt: skip
        kdcache.build(
            texts, teacher=trial.out / "teacher", task=trial.task, out=second, progress=False,
            signals=served(trial, "kd", "tinybert", "l2a"),
        )  # fmt: skip

    once(second, make)
    caches = [trial.out / "cache.zarr", second]
    return as_often(trial).train(recipe, rate, seed, *off, caches=caches)


def of_domains(
    data: Path | None, trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str
) -> Trained:
    """From the texts, and from reviews of two more domains, some of them labelled."""
    texts, both = trial.out / "domains.csv", trial.out / "domains.zarr"

    def make() -> None:
        reviews = further_reviews(named(data, recipe, "--data FOLDER: reviews of further domains"))
        with (trial.out / "train.csv").open(encoding="utf-8") as file:
            rows = [{**row, "domain": "movies"} for row in csv.DictReader(file)]
        for domain, found in reviews.items():
            kept = unlabelled(found[:REVIEWS], LABELS, 0)
            rows += [{**one._asdict(), "domain": domain} for one in kept]
        write_rows(texts, rows)
        kdcache.build(
            texts, teacher=trial.out / "teacher", task=trial.task, out=both, progress=False,
            text_columns=["text"], label_column="label", keep_teacher_weights=True,
            signals=served(trial, "kd", "meta-kd"),
        )  # fmt: skip

    once(both, make)
    weighs = [
        f"{of}data.example_weights.{name}={value}"
        for of, stage in zip(recipe.prefixes, recipe.in_stages(), strict=True)
        for name, value in (("domain", "domain"), ("file", texts))
        if stage.data.weighting is not None
    ]
    return as_often(trial).train(recipe, rate, seed, *weighs, *off, caches=[both])


def with_heads(
    caches: Mapping[str, Path], trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str
) -> Trained:
    """An encoder with a head for each of several tasks, the first of which is looked at.

    It is not chosen on dev while it trains.
    """
    own = {"max_steps": trial.steps, "learning_rate": rate}
    student = trial.new or {"init_from_teacher": trial.layers}
    trial.clear()
    result = kdcache.train(
        caches, recipe=recipe, out=trial.out / "student", seed=seed, batch_size=trial.batch,
        **student, progress=False, resume=trial.resume,
        overrides=[*(f"training.{name}={value}" for name, value in own.items()), *off],
    )  # fmt: skip
    return trial.scored(result.folder / next(iter(caches)), result.metrics)


def two_tasks(
    data: Path | None, trial: Trial, recipe: Recipe, rate: float, seed: int, *off: str
) -> Trained:
    """From this task and from pairs of sentences, which have a teacher of their own."""
    other = trial.out / THERE

    def make() -> None:
        rows = pairs(named(data, recipe, "--data FOLDER: mrpc in it"))
        other.mkdir(exist_ok=True)
        cut = len(rows) // 10
        write_rows(other / "dev.csv", rows[:cut])
        write_rows(other / "train.csv", rows[cut:])
        teacher = taught(other / "teacher", seed=0, epochs=EPOCHS)
        there = replace(trial, out=other)
        kdcache.build(
            other / "train.csv", teacher=teacher, task=trial.task, out=other / "cache.zarr",
            signals=served(there, "mkd"), keep_teacher_weights=True, progress=False,
        )  # fmt: skip

    once(other, make)
    caches = {HERE: trial.out / "cache.zarr", THERE: other / "cache.zarr"}
    return with_heads(caches, trial, recipe, rate, seed, *off)


def more(masked: Path | None, data: Path | None) -> dict[str, Way]:
    """By the name of a row: a shipped recipe, and what it takes beside the corpus."""
    texts = Way(train=partial(augmented, masked), caches=("cache.zarr", "augmented.zarr"))
    domains = Way(train=partial(of_domains, data), caches=("domains.zarr",))
    tasks = Way(train=partial(two_tasks, data), caches=("cache.zarr", f"{THERE}/cache.zarr"))
    return {
        "kd-augmented": replace(texts, recipe="kd", over="kd"),
        "tinybert-augmented": replace(texts, recipe="tinybert", over="tinybert"),
        "l2a-augmented": replace(texts, recipe="l2a", over="l2a"),
        "kd-domains": replace(domains, recipe="kd", over="kd"),
        "meta-kd-domains": replace(domains, recipe="meta-kd", over="kd-domains"),
        "mkd": replace(tasks, over="kd-mse"),
    }


MORE = tuple(more(None, None))
"""The names of these rows, each behind that which it is compared with."""
