"""Which recipes a cache serves, and the signals with which it would serve the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcache.errors import ConfigError
from kdcache.labels import kind_of
from kdcache.labels.tokens import TOKENS
from kdcache.losses.binding import of_one_vocabulary
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.teachers import POINTS
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
            are not what is lacking, or would not do.
        beside: what it wants that no signal is, where signals are lacking too.
    """

    recipe: str
    why: str = ""
    signals: tuple[str, ...] = ()
    beside: str = ""

    def to_json(self) -> Json:
        """The fields by name, and whether the cache serves the recipe as `served`."""
        return {
            "recipe": self.recipe,
            "served": not self.why,
            "why": self.why,
            "signals": list(self.signals),
            "beside": self.beside,
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
    projected, found = attends(config), []
    for recipe in recipes:
        known = cache_spec(cache, labelled, several=recipe.several)
        why = objection(recipe, known, trained(recipe, student))
        beside = wanted_beside(recipe, known)
        if not why:
            found.append(Served(recipe=recipe.name, why=beside))
            continue
        texts, left = _with_signals(recipe, known, student, teacher, projected)
        one = Served(recipe=recipe.name, why=why, signals=texts, beside=beside)
        found.append(Served(recipe=recipe.name, why=left) if left else one)
    return found


def _with_signals(
    recipe: Recipe, cache: CacheSpec, student: ModelSizes, teacher: ModelSizes, projected: bool
) -> tuple[tuple[str, ...], str]:
    """Signals with which a cache of a teacher would serve a recipe, and what objects even then;
    neither of one at points, which no build makes.
    """
    if cache.points:
        return (), ""
    try:
        texts = signals_for([recipe], cache.task, student, teacher, projected)
    except ConfigError as error:
        return (), str(error)
    return tuple(texts), left_with(texts, recipe, cache, trained(recipe, student), teacher)


def left_with(
    texts: Iterable[str],
    recipe: Recipe,
    cache: CacheSpec,
    student: ModelSizes,
    teacher: ModelSizes,
) -> str:
    """The `objection` to a cache of a teacher that has signals; "" if there is none."""
    return objection(recipe, replace(cache, signals=parse_all(texts), shape=teacher), student)


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
    return objection(recipe, cache, trained(recipe, student)) or wanted_beside(recipe, cache)


def objection(recipe: Recipe, cache: CacheSpec, student: ModelSizes) -> str:
    """Why the losses of a recipe do not learn from a cache, whatever lies beside it, for a student
    whose sizes are those of what is trained; "" if they do.
    """
    if why := _unclassified(recipe, cache.task):
        return why
    peers = len(recipe.student.get("together", ()))
    few = min(cache.documents, 2)  # of which some losses keep a table
    reworded = bool(_by_words(recipe))  # such a recipe is for a tokenizer of one's own
    cache = replace(cache, documents=few, reworded=reworded)
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
    return ""


def wanted_beside(recipe: Recipe, cache: CacheSpec) -> str:
    """What a recipe wants that no signal is, and it does not name or has not; "" if nothing."""
    if why := _lacks_points(recipe, cache.task, [cache.points]):
        return why
    if (by_words := _by_words(recipe)) and not recipe.student.get("tokenizer"):
        return of_one_vocabulary(by_words)
    for of, stage in zip(recipe.prefixes, recipe.in_stages(), strict=True):
        column = stage.data.weighting.lacking if stage.data.weighting else ""
        if column:
            return (
                f"{of}data.example_weights reads column {column!r} of the corpus, which no cache "
                f"holds: --set {of}data.example_weights.file=FILE, the corpus of the cache"
            )
    return ""


def _by_words(recipe: Recipe) -> str:
    """The loss that is for a tokenizer of the student's own; "" if there is none."""
    losses = [named for stage in recipe.in_stages() for named in stage.losses.items()]
    return next((name for name, loss in losses if getattr(loss, "by_words", False)), "")


def _unclassified(recipe: Recipe, task: Task) -> str:
    """Why documents of a task have no points for a recipe to learn at; "" if they do."""
    if task.rows == "document" or not (_teaches_at_points(recipe) or _wants_points(recipe)):
        return ""
    return f"points are of documents that are classified; the task is {task}"


def _teaches_at_points(recipe: Recipe) -> bool:
    """Whether a loss learns from a second teacher that was run at points."""
    stages = recipe.in_stages()
    return any(one.teachers == POINTS for stage in stages for one in stage.teaching.values())


def _wants_points(recipe: Recipe) -> bool:
    """Whether one of its caches has to be of points."""
    return any(stage.data.points for stage in recipe.in_stages())


def require_points(recipe: Recipe, caches: Sequence[Cache]) -> None:
    """Raise ConfigError for a recipe that is to learn at points too, and caches without any."""
    tasks = [cache.plan.task for cache in caches]
    classified = next((task for task in tasks if task.rows == "document"), tasks[0])
    if why := _lacks_points(recipe, classified, [cache.at_points for cache in caches]):
        raise ConfigError(why)


def _lacks_points(recipe: Recipe, task: Task, at_points: Iterable[bool]) -> str:
    """Why caches of a task do not serve a recipe that is to learn at points too; "" if they do.

    Args:
        at_points: of each cache, whether what it is seen as is of points.
    """
    if why := _unclassified(recipe, task):
        return why
    if not _wants_points(recipe) or any(at_points) or _teaches_at_points(recipe):
        return ""
    return (
        f"recipe {recipe.name} learns at points too, and no cache given is of any: train a student "
        "by kd-mse, find its points (kdcache ascend CACHE --teacher TEACHER --student STUDENT), "
        "and go on from it with both caches, not merged (--student STUDENT)"
    )
