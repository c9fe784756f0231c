"""Which losses of a recipe a cache serves: those that are on, bound to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kdcache.errors import ConfigError, said_of
from kdcache.losses.base import Loss
from kdcache.losses.binding import bind
from kdcache.losses.bound import BoundLoss
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.passes import labels_only
from kdcache.losses.schedules import Schedules, is_on, moments
from kdcache.losses.teachers import FIRST, Teaching
from kdcache.signals import ModelSizes


class Served(NamedTuple):
    """The losses that are on, by name, in the order of the recipe.

    Attributes:
        losses: as the recipe has them.
        bound: the same with what they match.
        schedules: of their numbers.
        notes: what a person should know, such as a loss that was left out.
        hard_only: whether documents without a label would teach nothing.
    """

    losses: dict[str, Loss]
    bound: dict[str, BoundLoss]
    schedules: Schedules
    notes: list[str]
    hard_only: bool


def serve(
    losses: Mapping[str, Loss],
    cache: CacheSpec,
    student: ModelSizes,
    schedules: Schedules,
    teaching: Mapping[str, Teaching],
) -> Served:
    """The losses that are on, bound; ConfigError where cache or student cannot serve one.

    Numbers that a schedule comes to are refused here, too.
    """
    on = {name: loss for name, loss in losses.items() if is_on(name, loss, schedules)}
    if not on:
        raise ConfigError("every loss of the recipe has weight 0; give one of them a weight")
    hard = [name for name, loss in on.items() if _labels_only(name, loss, cache, student)]
    served, notes = (on, []) if cache.labelled else _without(hard, on)

    def told(name: str, loss: Loss) -> BoundLoss:
        return bind(name, loss, cache, student, teaching.get(name, FIRST))

    changing = {name: found for name, found in schedules.items() if name in served}
    for name, found in changing.items():
        for loss in moments(served[name], found):
            told(name, loss)  # refuses numbers it will come to
    bound = {name: told(name, loss) for name, loss in served.items()}
    notes += [*_notes(bound, student), *_lone(bound, teaching)]
    return Served(served, bound, changing, notes, served.keys() <= set(hard))


def _labels_only(name: str, loss: Loss, cache: CacheSpec, student: ModelSizes) -> bool:
    with said_of(f"losses.{name}"):
        return labels_only(loss.matches(student, cache.shape))


def _notes(bound: Mapping[str, BoundLoss], student: ModelSizes) -> list[str]:
    """What a person should know of the teachers that losses learn from."""
    found: dict[str, None] = {}
    for one in bound.values():
        for match in one.matches:
            if match.outputs is None:
                continue
            theirs, prefix = match.source.shape.outputs, match.source.prefix
            teacher = f"teacher {match.source.name}" if prefix else "the teacher"
            note = (
                f"{teacher} has {theirs:,} outputs and the student {student.outputs:,}: they are "
                f"compared in the {match.outputs:,} that both have"
            )
            found[note] = None
    return list(found)


def _lone(bound: Mapping[str, BoundLoss], teaching: Mapping[str, Teaching]) -> Iterator[str]:
    """What to say of losses that choose among all teachers where there is but one."""
    for name, one in bound.items():
        if name in teaching and teaching[name].teachers == "all" and len(one.taught) == 1:
            yield (
                f"losses.{name} learns from all teachers of the cache, and there is one, "
                f"{next(iter(one.taught))}: `kdcache merge` puts several into a cache"
            )


def _without(hard: Sequence[str], losses: Mapping[str, Loss]) -> tuple[dict[str, Loss], list[str]]:
    """The losses but those that a corpus without labels turns off, and messages about these."""
    remaining = {name: loss for name, loss in losses.items() if name not in hard}
    if not remaining:
        raise ConfigError(
            f"the recipe trains on hard labels alone (losses.{hard[0]}) and the corpus has no "
            "labels; choose a recipe with soft labels, such as kd"
        )
    return remaining, ["hard-label loss is off: the corpus has no labels"] if hard else []
