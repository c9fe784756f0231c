"""What recipes ask of a cache: whether one serves them, and the signals that would."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import ConfigError
from kdcache.losses.base import Match, layers_text
from kdcache.losses.binding import wanted_of
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.matching import NOT_CACHED, SERVES
from kdcache.losses.schedules import is_on
from kdcache.manifest import Json
from kdcache.models.auto import load_config
from kdcache.models.cached_teacher import teacher_config
from kdcache.models.projections import MADE_OF_STATES
from kdcache.models.teacher import model_sizes
from kdcache.signals import LOGITS, TAP_KINDS, ModelSizes, SoftUse, parse, parse_all
from kdcache.signals.attention import PROJECTED
from kdcache.signals.base import settings_text
from kdcache.store import Cache
from kdcache.tasks import Task, as_task
from kdcache.training.objective import Objective
from kdcache.training.recipe import Recipe
from kdcache.training.specs import cache_spec

SOFT = ("logits:topk-small,k=64,draws=16", "logits:dense")
"""Soft labels for losses that a task's own do not serve, the smaller ones first."""
Places = Mapping[tuple[str, str], set[int]]
"""Layers of a teacher by tap and positions; none of a tap without layers."""


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


def signals_of_teacher(
    recipes: Iterable[Recipe], teacher: str | Path, task: str | Task, layers: int | None = None
) -> list[str]:
    """`signals_for` a teacher that lies in a folder, or on the hub, and a student cut from it."""
    config = load_config(teacher)
    of = as_task(task)
    sizes = model_sizes(config, of)
    return signals_for(recipes, of, cut(sizes, layers), sizes, attends(config))


def cut(teacher: ModelSizes, layers: int | None) -> ModelSizes:
    """Sizes of a student of some blocks of a teacher; half of them for None."""
    blocks = max(1, teacher.layers // 2) if layers is None else layers
    if not 0 < blocks <= teacher.layers:
        raise ConfigError(
            f"a student cut from this teacher has 1 to {teacher.layers} layers; got {blocks}"
        )
    return replace(teacher, layers=blocks)


def attends(config: Any) -> bool:
    """Whether queries, keys and values of a model of a configuration may be made of its states."""
    return config.model_type in MADE_OF_STATES


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
        for stage in recipe.in_stages():
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


def trained(recipe: Recipe, student: ModelSizes) -> ModelSizes:
    """Sizes of what a recipe trains of a student: twice the layers where it shares them."""
    return replace(student, layers=2 * student.layers) if recipe.student.get("shared") else student


def signals_for(
    recipes: Iterable[Recipe],
    task: Task,
    student: ModelSizes,
    teacher: ModelSizes,
    projected: bool = False,
) -> list[str]:
    """The signals that serve all of some recipes in the fewest bytes a token.

    Args:
        recipes: their losses that are on; numbers of a schedule are what they start with.
        student: sizes of the student, whose depth decides on layers; of one that shares its blocks
            those that it has parameters of.
        teacher: sizes of the teacher.
        projected: whether queries, keys and values may be made of hidden states (`attention`).

    Returns:
        Signals as `--signal` takes them.

    Raises ConfigError if a loss does not fit two models of these sizes, or no signal serves it.
    """
    matches = [
        match
        for recipe in recipes
        for stage in recipe.in_stages()
        for name, loss in stage.losses.items()
        if is_on(name, loss, stage.schedules)
        for match in wanted_of(loss, trained(recipe, student), teacher, first=True)
        if match.teacher not in NOT_CACHED
    ]
    soft = _soft([match.use for match in matches if match.use is not None], task, teacher.outputs)
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for match in matches:
        if match.use is None and match.teacher.how is None:
            places[_place(match, task)] |= (
                set() if match.teacher.layer is None else {match.teacher.layer}
            )
    kept = soft + _attributions(matches)
    ways = [kept + _texts(places)]
    if projected and _layers(places, PROJECTED):
        ways.append(kept + _projected(places, teacher))
    return min(ways, key=lambda texts: _token_bytes(texts, task, teacher))


def _token_bytes(texts: Sequence[str], task: Task, teacher: ModelSizes) -> int:
    """Bytes that each token takes; what a document has one row of does not tell ways apart."""
    specs = [s for signal in parse_all(texts).values() for s in signal.arrays(task, teacher)]
    return sum(
        math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize
        for spec in specs
        if spec.space == "token"
    )


def _place(match: Match, task: Task) -> tuple[str, str]:
    """The tap and the positions that a match reads; where a loss takes any, those of the logits."""
    name = match.teacher.name
    own = "cls" if task.rows == "document" else "all"
    return name, (match.positions or own) if TAP_KINDS[name].per == "token" else ""


def _soft(uses: Sequence[SoftUse], task: Task, outputs: int) -> list[str]:
    """The soft labels that a task stores by default, or the first that lack nothing."""
    if not uses:
        return []
    for text in (*task.signals, *SOFT):
        signal: Any = parse(text)
        if LOGITS in signal.gives() and not any(signal.lacks(use, outputs) for use in uses):
            return [text]
    raise ConfigError("no soft labels serve all of these recipes: make a cache for each")


def _attributions(matches: Iterable[Match]) -> list[str]:
    """A signal for every way that attributions are taken, all but the first under a name."""
    ways = list(dict.fromkeys(m.teacher for m in matches if m.teacher.how is not None))
    return [
        f"{f'{tap.name}-{place}=' if place else ''}{tap.name}:{settings_text(tap.how.settings())}"
        for place, tap in enumerate(ways)
        if tap.how is not None
    ]


def _layers(places: Places, taps: Iterable[str]) -> set[int]:
    return {layer for (tap, _), layers in places.items() if tap in taps for layer in layers}


def _projected(places: Places, teacher: ModelSizes) -> list[str]:
    """Queries, keys and values made of the hidden states before them, and all else as it is."""
    layers = sorted(_layers(places, PROJECTED))
    rest = {place: found for place, found in places.items() if place[0] not in PROJECTED}
    group = ",group=64" if teacher.hidden % 64 == 0 else ""
    made = f"attention:layers={layers_text(layers)}{group}"
    return [*_texts(rest, {layer - 1 for layer in layers}), made]


def _texts(places: Places, there: Set[int] = frozenset()) -> list[str]:
    """A signal for each tap and its positions; hidden states `there` are those of all tokens."""
    texts: list[str] = []
    named: set[str] = set()
    for (tap, positions), layers in sorted(places.items()):
        left = layers - _elsewhere(places, tap, positions, there)
        if layers and not left:
            continue
        options = [f"layers={layers_text(sorted(left))}"] if left else []
        options += [f"positions={positions}"] if positions else []
        name = f"{tap}-{positions}=" if tap in named else ""
        named.add(tap)
        texts.append(name + ":".join(filter(None, [tap, ",".join(options)])))
    return texts


def _elsewhere(places: Places, tap: str, positions: str, there: Set[int]) -> set[int]:
    """Layers whose tokens at some positions are picked out of others that are stored."""
    if positions not in SERVES["all"]:
        return set()
    found = set(there) if tap == "hidden" else set()
    return found if positions == "all" else found | places.get((tap, "all"), set())
