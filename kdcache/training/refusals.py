"""What a refusal of a cache says beside what it lacks: all that its recipe needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kdcache.errors import ConfigError, ModelError
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.lacking import LackingError
from kdcache.models.cached_teacher import teacher_config
from kdcache.models.teacher import model_sizes
from kdcache.store import Cache
from kdcache.training.recipe import Recipe
from kdcache.training.wanted_signals import attends, signals_wanted


@contextmanager
def with_all_signals(recipe: Recipe, caches: Sequence[Cache]) -> Iterator[None]:
    """Let a refusal of a cache that lacks something name all signals that the recipe needs.

    A cache that is built with what one loss lacks, and no more, would be refused for the next.
    """
    try:
        yield
    except LackingError as error:
        wanted = " ".join(f"--signal {text}" for text in _wanted(recipe, caches, error))
        if wanted:
            way = str(error).removesuffix(error.asked)
            error.args = (f"{way}{wanted}, all that recipe {recipe.name} needs",)
        raise


def _wanted(recipe: Recipe, caches: Sequence[Cache], error: LackingError) -> list[str]:
    """The signals that serve a recipe whole; none if no cache of this teacher would."""
    cache = next(
        (one for one in caches for one in one.views.values() if _is(one, error.cache)), None
    )
    if cache is None:
        return []
    try:
        config, task = teacher_config(cache), cache.plan.task
        teacher = model_sizes(config, task)
        return signals_wanted(recipe, task, error.student, teacher, attends(config))
    except (ConfigError, ModelError):  # it does not fit such a teacher, or that is a module
        return []


def _is(cache: Cache, spec: CacheSpec) -> bool:
    return (cache.teacher or cache.first) == spec.name and cache.signals == spec.signals
