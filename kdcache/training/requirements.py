"""Which recipes a cache serves, and the signals with which it would serve the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError
from kdcache.labels import kind_of
from kdcache.labels.tokens import TOKENS
from kdcache.losses.cache_spec import CacheSpec
from kdcache.manifest import Json
from kdcache.models.auto import load_config, problem_type_of
from kdcache.models.cached_teacher import teacher_config
from kdcache.models.teacher import model_sizes
from kdcache.signals import ModelSizes, parse_all
from kdcache.store import Cache
from kdcache.tasks import Task, as_task
from kdcache.training.objective import Objective
from kdcache.training.recipe import Recipe
from kdcache.training.specs import cache_spec
from kdcache.training.stage import of_stage
from kdcache.training.wanted_signals import attends, cut, signals_for, trained


@dataclass(frozen=True, kw_only=True)
class Served:
    """Whether a cache serves a recipe.

    Attributes:
        recipe: its name.
        why: why not, as training would say it; "": it trains on the cache as it is.
        signals: those of a cache that would serve it, as `--signal` takes them; none where signals
            are not what is lacking.
    """

    recipe: str
    why: str = ""
    signals: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """The fields by name, and whether the cache serves the recipe as `served`."""
        return {
            "recipe": self.recipe,
            "served": not self.why,
            "why": self.why,
            "signals": list(self.signals),
        }


def served_by(cache: Cache, recipes: Iterable[Recipe], layers: int | None = None) -> list[Served]:
    """Which recipes a cache serves, for a student cut from its teacher; no row is read.

    Args:
        layers: blocks of the student; None: half of the teacher's.

    Raises ConfigError for a student deeper than the teacher.
    """
    config = teacher_config(cache)
    teacher = model_sizes(config, cache.plan.task)
    student = cut(teacher, layers)
    labelled = len(cache.plan.labelled_docs)
    found = []
    for recipe in recipes:
        known = cache_spec(cache, labelled, several=recipe.several)
        why = unserved(recipe, known, student)
        signals = _remedy(recipe, known, student, teacher, config) if why else ()
        found.append(Served(recipe=recipe.name, why=why, signals=signals))
    return found


def _remedy(
    recipe: Recipe, cache: CacheSpec, student: ModelSizes, teacher: ModelSizes, config: Any
) -> tuple[str, ...]:
    """Signals with which a cache would serve a recipe; none if it would not even then."""
    try:
        texts = signals_for([recipe], cache.task, student, teacher, attends(config))
    except ConfigError:
        return ()
    whole = replace(cache, signals=parse_all(texts), shape=teacher)
    return () if unserved(recipe, whole, student) else tuple(texts)


def beside_signals(
    recipes: Iterable[Recipe],
    signals: Sequence[str],
    teacher: str | Path,
    task: str | Task,
    layers: int | None = None,
) -> dict[str, str]:
    """What recipes want beside some signals of a teacher and labels, by name, as training says it;
    those that want nothing more are not in it.
    """
    config, of = load_config(teacher), as_task(task)
    sizes = model_sizes(config, of)
    kind = kind_of(problem_type_of(config), sizes.outputs) if of.rows == "document" else None
    known = CacheSpec(
        task=of,
        label_kind=(kind or TOKENS).name,
        signals=parse_all(signals),
        shape=sizes,
        labelled=1,
        documents=2,
    )
    found = {recipe.name: unserved(recipe, known, cut(sizes, layers)) for recipe in recipes}
    return {name: why for name, why in found.items() if why}


def unserved(recipe: Recipe, cache: CacheSpec, student: ModelSizes) -> str:
    """Why a cache does not serve a recipe for a student of these sizes; "" if it does."""
    peers = len(recipe.student.get("together", ()))
    cache = replace(cache, documents=min(cache.documents, 2))  # of which some losses keep a table
    by_words = any(
        getattr(loss, "by_words", False)
        for stage in recipe.in_stages()
        for loss in stage.losses.values()
    )
    cache = replace(cache, reworded=by_words)  # such a recipe is for a tokenizer of one's own
    student = trained(recipe, student)
    try:
        for prefix, stage in zip(recipe.prefixes, recipe.in_stages(), strict=True):
            with of_stage(prefix, stage.losses):
                Objective(
                    stage.losses,
                    cache,
                    replace(student, peers=peers),
                    stage.schedules,
                    teaching=stage.teaching,
                    inputs=stage.inputs,
                )
    except ConfigError as error:
        return str(error)
    return _unread(recipe)


def _unread(recipe: Recipe) -> str:
    """What a recipe reads from a file of columns that it does not name; "" if nothing."""
    for of, stage in zip(recipe.prefixes, recipe.in_stages(), strict=True):
        column = stage.data.weighting.lacking if stage.data.weighting else ""
        if column:
            return (
                f"{of}data.example_weights reads column {column!r} of the corpus, which no cache "
                f"holds: --set {of}data.example_weights.file=FILE, the corpus of the cache"
            )
    return ""
