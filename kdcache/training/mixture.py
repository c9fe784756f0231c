"""The caches that a student learns from in one run: which, in which shares, whether they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from kdcache.errors import ConfigError, MismatchError, ModelError
from kdcache.losses import CacheSpec
from kdcache.manifest import Json
from kdcache.models.student import require_tokens
from kdcache.plans import Docs
from kdcache.progress import short
from kdcache.signals import ModelSizes
from kdcache.store import Cache, open_cache
from kdcache.training.dev import DevSet, same_texts
from kdcache.training.documents import CachedDocuments
from kdcache.training.mixing import MixedDocuments
from kdcache.training.objective import Objective
from kdcache.training.recipe import Recipe
from kdcache.training.run_folder import cache_identity

CAPTION = 110  # characters of a line under a title
SHOWN = 4  # values of a list that a message shows
IDENTITY = ("plan", "contents", "teacher", "signals")


@dataclass(frozen=True)
class Mixture:
    """The caches of a run, in the order they are named.

    The first is what the student is made for: its teacher, tokenizer and classes are the student's.

    Attributes:
        mix: shares of the steps, which sum to 1; None: every document comes once an epoch.
    """

    caches: tuple[Cache, ...]
    mix: tuple[float, ...] | None = None

    @property
    def first(self) -> Cache:
        return self.caches[0]

    @property
    def others(self) -> tuple[Cache, ...]:
        """All but the first."""
        return self.caches[1:]

    @property
    def names(self) -> str:
        """What to call them in a label."""
        return ", ".join(short(str(cache.path)) for cache in self.caches)

    @property
    def record(self) -> Json | None:
        """What tells whether a run that is resumed learns from the same; None of one cache."""
        if not self.others:
            return None
        caches = [cache_identity(cache, None) for cache in self.caches]
        kept = [{key: identity[key] for key in IDENTITY} for identity in caches]
        return {"mix": self.mix if self.mix is None else list(self.mix), "caches": kept}

    def require_whole(self, *, allow_partial: bool) -> None:
        """Raise IncompleteError for several caches of which one lacks parts."""
        if self.others and allow_partial:
            raise ConfigError(
                "--allow-partial is for one cache: wait until all of several are built"
            )
        for cache in self.others:
            cache.require_complete()

    def caption(self, documents: Sequence[int]) -> str:
        """A line under a title: each of several caches, its contents and its share."""
        if not self.others:
            return ""
        told = (
            f"{row['cache']} {row['contents'][:8]} {row['share']:.0%}"
            for row in self.report(documents)
        )
        return "\n" + fill(", ".join(told), CAPTION)

    def report(self, documents: Sequence[int]) -> list[Json]:
        """What metrics and card say of each cache, given its documents of an epoch."""
        return [
            {
                "cache": short(str(cache.path)),
                "plan": cache.manifest["plan"]["sha256"],
                "contents": cache_identity(cache, None)["contents"],
                "teacher": cache.manifest["teacher"]["name"],
                "documents": cache.plan.documents,
                "documents_an_epoch": count,
                "share": count / sum(documents),
            }
            for cache, count in zip(self.caches, documents, strict=True)
        ]


def open_mixture(caches: Any, mix: Sequence[float] | str | None) -> Mixture:
    """The caches that a call of `train` names, opened.

    Raises ConfigError for shares that do not fit, or a cache named twice; MismatchError for caches
    that do not go together.
    """
    named = list(caches) if isinstance(caches, list | tuple) else [caches]
    if not named:
        raise ConfigError("train takes a cache, or several in a list; got an empty list")
    opened = tuple(c if isinstance(c, Cache) else open_cache(c) for c in named)
    shares = None if mix is None else _shares(mix, opened)
    for number, cache in enumerate(opened):
        if any(str(cache.path) == str(other.path) for other in opened[:number]):
            raise ConfigError(f"{cache.path} is named twice: name it once, or weigh it with --mix")
        require_together(opened[0], cache)
    return Mixture(opened, shares)


def _shares(mix: Sequence[float] | str, caches: Sequence[Cache]) -> tuple[float, ...]:
    values = _numbers(mix)
    if len(caches) == 1:
        raise ConfigError("--mix shares the steps out among several caches, and there is one")
    if len(values) != len(caches):
        raise ConfigError(
            f"--mix has {len(values)} shares, and there are {len(caches)} caches: give one for each"
        )
    return tuple(value / math.fsum(values) for value in values)


def _numbers(mix: Sequence[float] | str) -> list[float]:
    try:
        values = [float(v) for v in (mix.split(",") if isinstance(mix, str) else mix)]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--mix takes shares as in 0.7,0.3; got {mix!r}") from error
    if not all(0 < value < math.inf for value in values):
        raise ConfigError(f"shares (--mix) are more than 0 and finite; got {mix!r}")
    return values


class Trait(NamedTuple):
    """What several caches have to have alike, and what to do where they do not."""

    of: Callable[[Cache], Any]
    way: str


REPLAN = "plan both corpora with one tokenizer"
TRAITS: Mapping[str, Trait] = {
    "task": Trait(lambda cache: cache.plan.task.name, "train a student for each"),
    "kind of label": Trait(
        lambda cache: cache.plan.config.problem, "build both with the same --label-type"
    ),
    "tokenizer (SHA-256)": Trait(lambda cache: cache.plan.config.tokenizer["sha256"][:12], REPLAN),
    "number of tokens": Trait(lambda cache: cache.plan.config.tokenizer["vocab_size"], REPLAN),
    "pad token": Trait(lambda cache: cache.plan.config.tokenizer["pad_id"], REPLAN),
    "token types": Trait(lambda cache: cache.plan.config.tokenizer["type_ids"], REPLAN),
    "mask token": Trait(lambda cache: cache.plan.config.tokenizer.get("mask_id"), REPLAN),
    "classes": Trait(
        lambda cache: cache.plan.config.classes,
        "give both teachers the same classes in the same order",
    ),
    "number of outputs": Trait(
        lambda cache: cache.shape.outputs if cache.plan.task.labelled else None,
        "build both with teachers of the same classes",
    ),
}
"""What caches of one task have alike, by name."""


def require_together(one: Cache, other: Cache) -> None:
    """Raise MismatchError, with the first difference, unless one student can learn from both."""
    for name, trait in TRAITS.items():
        found, there = trait.of(one), trait.of(other)
        if found != there:
            raise MismatchError(
                f"{one.path} and {other.path} do not go together: the {name} is {_text(found)} in "
                f"the first and {_text(there)} in the second: {trait.way}"
            )


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    more = ", ..." if len(value) > SHOWN else ""
    return f"{', '.join(map(str, value[:SHOWN]))}{more} ({len(value)})"


def require_student(config: Any, mixture: Mixture) -> None:
    """Raise ModelError, naming the cache, if the student lacks a token of one behind the first."""
    for other in mixture.others:
        try:
            for one in (config, *getattr(config, "members", ())):
                require_tokens(one, other)
        except ModelError as error:
            raise ModelError(f"{other.path}: {error}") from error


def without(dev: DevSet, mixture: Mixture, docs: Sequence[Docs]) -> tuple[list[Docs], list[str]]:
    """The documents of each cache that are not in a dev set, and what a person should know.

    Raises ConfigError if nothing of a cache is left.
    """
    first, *others = docs
    left, notes = [np.setdiff1d(first, dev.left_out)], []
    for cache, there in zip(mixture.others, others, strict=True):
        same = same_texts(dev, cache.plan, there)
        if len(same) == len(there):
            raise ConfigError(
                f"all documents of {cache.path} are in the dev set ({dev.source}): leave the cache "
                "out, or choose another dev set"
            )
        if len(same):
            notes.append(f"{len(same):,} documents of {cache.path} are in the dev set: left out")
        left.append(np.setdiff1d(there, same))
    return left, notes


def documents_read(
    mixture: Mixture,
    objectives: Sequence[Objective],
    docs: Sequence[Docs],
    *,
    seed: int,
    window: int,
    batch: int,
) -> CachedDocuments | MixedDocuments:
    """The data set of a run whose objectives learn from documents of each cache.

    `batch` is the number of documents of a step over all ranks. Raises ConfigError for a cache that
    has nothing to teach.
    """
    sets = [
        CachedDocuments(cache, one.arrays, seed=seed, window=window, docs=there)
        for cache, one, there in zip(mixture.caches, objectives, docs, strict=True)
    ]
    if len(sets) == 1:
        return sets[0]
    for one in sets:
        if not len(one.docs):
            raise ConfigError(
                f"{one.cache.path} has no labels, and the recipe learns from labels alone: leave "
                "it out, or choose a recipe with soft labels, such as kd"
            )
    mixed = MixedDocuments(sets, mixture.mix, seed=seed, window=window)
    mixed.batch = batch
    assert mixed.counts  # or a share that comes to no step is refused here
    return mixed


def bind_all(
    mixture: Mixture,
    recipe: Recipe,
    specs: Sequence[CacheSpec],
    student: ModelSizes,
    *,
    seed: int,
) -> list[Objective]:
    """The losses of a recipe bound to each cache; learned maps are those of the first.

    Raises ConfigError, naming both caches, where another than the first cannot serve the recipe.
    """
    options: Any = {"schedules": recipe.schedules, "teaching": recipe.teaching, "seed": seed}
    made = [Objective(recipe.losses, specs[0], student, **options)]
    for other, spec in zip(mixture.others, specs[1:], strict=True):
        pair = f"{mixture.first.path} and {other.path}"
        try:
            found = Objective(recipe.losses, spec, student, **options)
        except ConfigError as error:
            raise ConfigError(
                f"{pair} do not go together in recipe {recipe.name}, which only the first can "
                f"serve: {error}"
            ) from error
        _share_maps(made[0], found, pair)
        made.append(found)
    return made


def _share_maps(one: Objective, other: Objective, pair: str) -> None:
    """Let two objectives learn the same maps; ConfigError where their widths differ."""
    maps, others = _widths(one), _widths(other)
    if maps != others:
        name = next(name for name in {**maps, **others} if maps.get(name) != others.get(name))
        raise ConfigError(
            f"{pair} do not go together: the map losses.{name} learns goes to {maps.get(name)} in "
            f"the first and to {others.get(name)} in the second, for their teachers' widths "
            "differ: leave the loss out, or one of the caches"
        )
    other.projections = one.projections
    other.state = one.state  # one that is on the device, and in the checkpoint


def _widths(objective: Objective) -> dict[str, int]:
    learned: Mapping[str, Any] = dict(objective.projections.items())
    return {name: linear.out_features for name, linear in learned.items()}
