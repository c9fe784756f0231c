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
from kdcache.training.requirements import left_with, wanted_beside
from kdcache.training.wanted_signals import attends, signals_wanted


@contextmanager
def with_all_signals(recipe: Recipe, caches: Sequence[Cache]) -> Iterator[None]:
    """Let a refusal of a cache that lacks something name all signals that the recipe needs.

    A cache that is built with what one loss lacks, and no more, would be refused for the next.
    """
    try:
        yield
    except LackingError as error:
        cache = next(
            (one for one in caches for one in one.views.values() if _is(one, error.cache)), None
        )
        if cache is None:
            raise
        texts, left = _wanted(recipe, cache, error)
        wanted = " ".join(f"--signal {text}" for text in texts)
        way = str(error).removesuffix(error.asked)
        if left:
            error.args = (f"no cache of its teacher serves recipe {recipe.name}: {left}",)
        elif wanted:
            beside = wanted_beside(recipe, error.cache)
            then = f"; then {beside}" if beside else ""
            error.args = (f"{way}{wanted}, all that recipe {recipe.name} needs{then}",)
        raise


def _wanted(recipe: Recipe, cache: Cache, error: LackingError) -> tuple[Sequence[str], str]:
    """The signals that serve a recipe whole, and what objects even then; nothing of either where a
    loss names its signal, or of a teacher that is a module.
    """
    try:
        config, task = teacher_config(cache), cache.plan.task
        teacher = model_sizes(config, task)
    except (ConfigError, ModelError):
        return (), ""
    try:
        texts = signals_wanted(recipe, task, error.student, teacher, attends(config))
    except ConfigError as why:
        return (), str(why)
    if not texts or recipe.several or error.cache.points:
        return texts, ""
    return texts, left_with(texts, recipe, error.cache, error.student, teacher)


def _is(cache: Cache, spec: CacheSpec) -> bool:
    return (cache.teacher or cache.first) == spec.name and cache.signals == spec.signals
