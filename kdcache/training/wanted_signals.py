"""The signals that serve recipes in the fewest bytes, for a teacher and a student cut from it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import ConfigError, said_of
from kdcache.losses.base import Match, layers_text
from kdcache.losses.binding import wanted_of
from kdcache.losses.lacking import positions_for
from kdcache.losses.matching import NOT_CACHED, SERVES
from kdcache.losses.schedules import is_on
from kdcache.models.auto import load_config
from kdcache.models.projections import MADE_OF_STATES
from kdcache.models.teacher import model_sizes
from kdcache.signals import LOGITS, TAP_KINDS, ModelSizes, SoftUse, parse, parse_all
from kdcache.signals.attention import PROJECTED
from kdcache.signals.base import settings_text
from kdcache.tasks import Task, as_task
from kdcache.training.recipe import Recipe

SOFT = ("logits:topk-small,k=64,draws=16", "logits:dense")
"""Soft labels for losses that a task's own do not serve, the smaller ones first."""
Places = Mapping[tuple[str, str], set[int]]
"""Layers of a teacher by tap and positions; none of a tap without layers."""


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
    found = [_matches(recipe, trained(recipe, student), teacher) for recipe in recipes]
    return _fewest([match for some in found for match in some], task, teacher, projected)


def signals_wanted(
    recipe: Recipe, task: Task, student: ModelSizes, teacher: ModelSizes, projected: bool = False
) -> list[str]:
    """As `signals_for` one recipe, of a student whose sizes are those of what is trained.

    None where a loss names its signal.
    """
    matches = _matches(recipe, student, teacher)
    named = any(match.signal for match in matches)
    return [] if named else _fewest(matches, task, teacher, projected)


def _matches(recipe: Recipe, student: ModelSizes, teacher: ModelSizes) -> list[Match]:
    """What the losses of a recipe that are on read of a teacher, in all its stages."""
    found: list[Match] = []
    for of, stage in zip(recipe.prefixes, recipe.in_stages(), strict=True):
        for name, loss in stage.losses.items():
            if is_on(name, loss, stage.schedules):
                with said_of(f"recipe {recipe.name}, {of}losses.{name}"):
                    found += wanted_of(loss, student, teacher, first=True)
    return [match for match in found if match.teacher not in NOT_CACHED]


def _fewest(
    matches: Sequence[Match], task: Task, teacher: ModelSizes, projected: bool
) -> list[str]:
    """The signals that serve all of some matches in the fewest bytes a token."""
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
    """The tap and the positions that a match reads; "" of a tap that has none."""
    name = match.teacher.name
    return name, positions_for(match, task) if TAP_KINDS[name].per == "token" else ""


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
