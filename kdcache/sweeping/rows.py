"""The table of a sweep: a row for each setting and kind, the teacher below."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdcache.evaluation.told import name_of
from kdcache.manifest import Json
from kdcache.shipping.run import KINDS
from kdcache.sweeping.front import on_front
from kdcache.sweeping.grid import SEED, called, in_toml
from kdcache.sweeping.record import STUDENT, TEACHER, TRAINED, Mean, Row, Student, Worst

DEV, EVAL = "dev", "eval"
COSTS = {"bytes": "bytes", "ms": "p50_ms"}
"""What a row's `front` may name, and the field it is about."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What rows are scored by.

    Attributes:
        metric: name of the score.
        higher: whether more of it is better.
        measured: which documents shipped models were scored on, "dev" or "eval"; None: on none.
        dev: whether there is a dev set: else rows are told apart by what they are only scored on.
    """

    metric: str
    higher: bool
    measured: str | None
    dev: bool

    def worth(self, row: Row) -> float | None:
        """The score that rows are compared by, the larger the better; None: it is not known."""
        mean = row.dev if self.dev else row.eval
        return None if mean is None else mean.mean if self.higher else -mean.mean


def rows_of(
    students: Sequence[Student],
    teacher: Json | None,
    axes: Sequence[str],
    scoring: Scoring,
    teacher_dev: float | None = None,
) -> tuple[Row, ...]:
    """The rows, the best on the dev set first, and in the order of the grid where there is none.

    `teacher` is what was measured of it; where it was not shipped, `teacher_dev` is its score.
    """
    groups: dict[str, list[Student]] = {}
    for student in students:
        if student.state == TRAINED:
            key = {n: v for n, v in student.settings.items() if n != SEED}
            groups.setdefault(in_toml(key), []).append(student)
    rows = [row for group in groups.values() for row in _of_students(group, axes, scoring)]
    if scoring.dev:
        rows.sort(key=lambda row: (-_known(scoring.worth(row)), row.bytes or 0, row.p50_ms or 0))
    rows += _of_teacher(teacher, scoring, teacher_dev)
    fronts = {name: front(rows, field, scoring) for name, field in COSTS.items()}
    return tuple(
        dataclasses.replace(row, front=tuple(n for n, places in fronts.items() if at in places))
        for at, row in enumerate(rows)
    )


def _known(value: float | None) -> float:
    return -math.inf if value is None else value


def _of_students(group: Sequence[Student], axes: Sequence[str], scoring: Scoring) -> Iterator[Row]:
    settings = {n: v for n, v in group[0].settings.items() if n != SEED}
    for kind in KINDS if any(one.shipped for one in group) else KINDS[:1]:
        made = [one.shipped[kind] for one in group if one.shipped]
        measured: Any = {
            name: Mean.of([one.get(scoring.metric) for one in made])
            for name in (DEV, EVAL)
            if name == scoring.measured
        }
        trained: Any = {
            DEV: Mean.of([one.dev for one in group]),
            EVAL: Mean.of([one.eval for one in group]),
        }
        yield Row(
            name=called(settings, axes),
            who=STUDENT,
            kind=kind,
            settings=settings,
            students=tuple(one.name for one in group),
            parameters=group[0].parameters,
            **(trained if kind == KINDS[0] else measured),
            **_costs(made),
        )


def _of_teacher(teacher: Json | None, scoring: Scoring, dev: float | None) -> Iterator[Row]:
    own: Any = {"name": TEACHER, "who": TEACHER, "settings": {}}
    if teacher is None:
        if dev is not None:
            yield Row(**own, kind=KINDS[0], dev=Mean.of([dev]))
        return
    slices = teacher.get("slices", {})
    for kind in KINDS:
        made = teacher["kinds"][kind]
        measured: Any = {}
        if scoring.measured is not None:
            measured[scoring.measured] = Mean.of([made.get(scoring.metric)])
        yield Row(
            **own,
            kind=kind,
            parameters=teacher["parameters"],
            worst=None if kind == KINDS[0] else worst_of(TEACHER, slices.get(kind, {})),
            **measured,
            **_costs([made]),
        )


def worst_of(student: str, slices: Json) -> Worst | None:
    """The slice on which a model loses most, of the worst of each column; None: it has no score."""
    there = {column: told for column, told in slices.items() if told is not None}
    if not there:
        return None
    column = max(there, key=lambda name: float(there[name]["drop"]["value"]))
    told = there[column]
    return Worst(
        student=student,
        where=f"{column}={name_of(told['slice'])}",
        documents=told["labelled"],
        drop=told["drop"]["value"],
        interval=None if (found := told["drop"]["interval"]) is None else tuple(found),
        metric=told["metric"],
    )


def _costs(made: Sequence[Json]) -> Any:
    """Bytes and milliseconds of models that are alike: those of the one in the middle."""
    names = ("bytes", "p50_ms", "p95_ms")
    found = {name: [one[name] for one in made if name in one] for name in names}
    return {name: statistics.median_low(values) for name, values in found.items() if values}


def front(rows: Sequence[Row], field: str, scoring: Scoring) -> set[int]:
    """Places of the rows that no other beats: none is as good and cheaper, or better and as cheap.

    Rows whose score or cost is not known are left out.
    """
    known = [
        (place, worth, cost)
        for place, row in enumerate(rows)
        if (cost := getattr(row, field)) is not None and (worth := scoring.worth(row)) is not None
    ]
    best = on_front([(worth, cost) for _, worth, cost in known])
    return {place for (place, *_), unbeaten in zip(known, best, strict=True) if unbeaten}
