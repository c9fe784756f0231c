"""A recipe bound to every cache of a run, and the documents that are read for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import transformers
from torch import nn

from kdcache.errors import ConfigError, said_of
from kdcache.losses import CacheSpec
from kdcache.plans import Docs
from kdcache.signals import ModelSizes
from kdcache.store import Cache
from kdcache.training.dev import DevSet, same_texts
from kdcache.training.dev_heads import HeadDevs
from kdcache.training.documents import CachedDocuments
from kdcache.training.mixing import MixedDocuments
from kdcache.training.mixture import Mixture
from kdcache.training.objective import Objective
from kdcache.training.recipe import Recipe
from kdcache.training.scale import step_documents
from kdcache.training.weighing import Weigher


def without(
    dev: DevSet | HeadDevs, mixture: Mixture, docs: Sequence[Docs]
) -> tuple[list[Docs], list[str]]:
    """The documents of each cache that are not in a dev set, and what a person should know.

    Raises ConfigError if nothing of a cache is left.
    """
    left, notes = list(docs), []
    for number, one in dev.each.items():
        left[number] = np.setdiff1d(left[number], one.left_out)
        for place, cache in enumerate(mixture.caches):
            if place == number:
                continue
            same = same_texts(one, cache, left[place])
            if len(same) == len(left[place]):
                raise ConfigError(
                    f"all documents of {cache.path} are in the dev set ({one.source}): leave the "
                    "cache out, or choose another dev set"
                )
            if len(same):
                told = f"{len(same):,} documents of {cache.path} are in the dev set"
                notes.append(f"{told}{_of(mixture, number)}: left out")
            left[place] = np.setdiff1d(left[place], same)
    return left, notes


def _of(mixture: Mixture, number: int) -> str:
    """Whose dev set it is, where every head has one."""
    return f" of {mixture.heads[number]}" if mixture.heads else ""


def documents_read(
    mixture: Mixture,
    objectives: Sequence[Objective],
    docs: Sequence[Docs],
    *,
    seed: int,
    window: int,
    args: transformers.TrainingArguments,
    weighers: Sequence[Weigher] = (),
) -> CachedDocuments | MixedDocuments:
    """The data set of a run whose objectives learn from documents of each cache.

    `weighers`, if any, weigh the documents of each cache. Raises ConfigError for a cache that has
    nothing to teach.
    """
    sets = [
        CachedDocuments(cache, one.arrays, seed=seed, window=window, docs=there)
        for cache, one, there in zip(mixture.caches, objectives, docs, strict=True)
    ]
    for one, weigher in zip(sets, weighers, strict=False):
        one.arrays, one.weighed = list(dict.fromkeys([*one.arrays, *weigher.arrays])), True
    if len(sets) == 1:
        return sets[0]
    for one in sets:
        if not len(one.docs):
            raise ConfigError(
                f"{one.cache.path} has no labels, and the recipe learns from labels alone: leave "
                "it out, or choose a recipe with soft labels, such as kd"
            )
    mixed = MixedDocuments(sets, mixture.mix, seed=seed, window=window)
    mixed.batch = step_documents(args)
    steps = -(-len(mixed) // mixed.batch)  # refuses a share that comes to no step, too
    epochs = args.max_steps / steps if args.max_steps > 0 else args.num_train_epochs
    mixed.epochs = max(1, math.ceil(epochs))
    return mixed


def bind_all(
    mixture: Mixture,
    recipe: Recipe,
    specs: Sequence[CacheSpec],
    sizes: Sequence[ModelSizes],
    *,
    seed: int,
) -> list[Objective]:
    """The losses of a recipe bound to each cache, for a student of these sizes.

    Learned maps are those of the first; where each cache has a head, each has maps of its own.

    Raises ConfigError, naming both caches, where another than the first cannot serve the recipe.
    """
    options: Any = {"schedules": recipe.schedules, "teaching": recipe.teaching, "seed": seed}
    options["inputs"] = recipe.inputs
    if mixture.heads:
        return [
            _bound_head(recipe, name, cache, spec, own, options)
            for (name, cache), spec, own in zip(mixture.by_head.items(), specs, sizes, strict=True)
        ]
    with said_of(str(mixture.first.path)) if mixture.others else nullcontext():
        made = [Objective(recipe.losses, specs[0], sizes[0], **options)]
    require_own_state(made[0], sizes[0].peers)
    for other, spec in zip(mixture.others, specs[1:], strict=True):
        pair = f"{mixture.first.path} and {other.path}"
        apart = f"{pair} do not go together in recipe {recipe.name}, which only the first can serve"
        with said_of(apart):
            found = Objective(recipe.losses, spec, sizes[0], **options)
        _share_maps(made[0], found, pair)
        made.append(found)
    return made


def require_own_state(objective: Objective, peers: int) -> None:
    """ConfigError for losses that keep something where students trained together share it."""
    if peers and len(objective.state):
        raise ConfigError(
            f"losses.{next(iter(objective.state))} keeps what it knows of one student from step to "
            f"step, and {peers} are trained together: leave it out"
        )


def _bound_head(
    recipe: Recipe, name: str, cache: Cache, spec: CacheSpec, student: ModelSizes, options: Any
) -> Objective:
    with said_of(f"{cache.path} cannot serve recipe {recipe.name} for head {name}"):
        return Objective(recipe.losses, spec, student, **options)


def learned_modules(mixture: Mixture, found: Sequence[nn.ModuleDict]) -> nn.ModuleDict:
    """What is learned beside the student: of all caches at once, or of each head by its name."""
    return (
        nn.ModuleDict(dict(zip(mixture.heads, found, strict=True))) if mixture.heads else found[0]
    )


OF_ONE_CACHE = {
    "remembered": "remembers the documents of one cache",
    "together": "learns which of a cache's teachers to take",
}
"""What a loss with such a method does that no two caches go together with."""


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
    for method, does in OF_ONE_CACHE.items():
        found = next((name for name, loss in one.losses.items() if hasattr(loss, method)), None)
        if found is not None:
            raise ConfigError(
                f"losses.{found} {does}, and {pair} are two: leave the loss out, or one of the "
                "caches"
            )
    kept, others_kept = _shapes(one), _shapes(other)
    if kept != others_kept:
        name = next(name for name in kept if kept[name] != others_kept.get(name))
        raise ConfigError(
            f"{pair} do not go together: what losses.{name.partition('.')[0]} keeps from step to "
            "step has another size for the second, for their teachers differ in depth: leave the "
            "loss out, or one of the caches"
        )
    other.learned.modules = one.learned.modules
    other.state = one.state  # one that is on the device, and in the checkpoint


def _widths(objective: Objective) -> dict[str, int]:
    learned: Mapping[str, Any] = dict(objective.projections.items())
    return {name: [*module.parameters()][-1].shape[0] for name, module in learned.items()}


def _shapes(objective: Objective) -> dict[str, tuple[int, ...]]:
    """Shapes of what losses keep between steps."""
    return {name: tuple(kept.shape) for name, kept in objective.state.named_buffers()}
