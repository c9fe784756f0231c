"""Which models give the most for what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdcache.manifest import Json
from kdcache.reporting.groups import Group
from kdcache.sweeping.front import on_front


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model with its score and what it costs.

    Attributes:
        interval: of the score, of 95%; None: not known.
        front: whether no other model has a better score for less, or the same for less.
    """

    name: str
    score: float
    interval: tuple[float, float] | None
    cost: float
    teacher: bool
    front: bool = False


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Something a model costs: the less the better.

    Attributes:
        name: of the picture.
        label: of the axis, with the unit.
        of: what a model costs, given what was found of it; None: not known.
    """

    name: str
    label: str
    of: Callable[[Json], float | None]


def _of(name: str, unit: float = 1.0) -> Callable[[Json], float | None]:
    return lambda side: None if side.get(name) is None else float(side[name]) / unit


def _milliseconds(side: Json) -> float | None:
    rate = side.get("documents_per_s")
    return 1000 / rate if rate else None


COSTS = (
    Cost(name="bytes", label="MB of the files that run", of=_of("bytes", 1e6)),
    Cost(name="latency", label="ms for one text, median, one thread", of=_of("p50_ms")),
    Cost(name="parameters", label="million parameters", of=_of("parameters", 1e6)),
    Cost(name="time", label="ms for a document, in batches", of=_milliseconds),
)
"""What models may be weighed by; those that nothing is known of are left out."""


def weighed(group: Group, cost: Cost) -> list[Model]:
    """The models of a group whose score and cost are known, with those on the front marked."""
    found = []
    for name, side in group.sides.items():
        score, paid = side.get(group.metric), cost.of(side)
        if score is not None and paid is not None and paid > 0:
            interval = side.get(f"{group.metric}_interval")
            found.append((name, float(score), interval, paid))
    front = on_front([(score, paid) for _, score, _, paid in found], higher=group.higher)
    return [
        Model(
            name=name,
            score=score,
            interval=None if interval is None else (interval[0], interval[1]),
            cost=paid,
            teacher=name in group.teachers,
            front=best,
        )
        for (name, score, interval, paid), best in zip(found, front, strict=True)
    ]
