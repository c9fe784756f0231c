"""Which student to take: the best on the dev set among those within the limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from kdcache.sweeping.record import STUDENT, TEACHER, Limits, Row, Student, Worst
from kdcache.sweeping.rows import Scoring, worst_of

NEAREST = 3
POINTS = 100  # of a score of 1


class Limit(NamedTuple):
    """A limit, and what it is on.

    Attributes:
        flag: what a person says.
        most: the limit.
        value: what a row takes of it; None: not known.
        words: what a row takes, a value, in words.
        least: what the row that takes least is called.
        where: what it holds on, where that is not all.
        called: the name of a row's student.
    """

    flag: str
    most: float
    value: Callable[[Row], float | None]
    words: Callable[[Row, float], str]
    least: str
    where: str = ""
    called: Callable[[Row], str] = lambda row: row.name

    @property
    def said(self) -> str:
        """The limit, in words."""
        return f"{self.flag} {self.most:g}{self.where}"

    def excess(self, row: Row) -> float:
        """How far a row is above the limit, as a share of it; infinite where it is not known."""
        value = self.value(row)
        if value is None:
            return float("inf")
        return max(0.0, value - self.most) / (self.most or 1.0)


class Choice(NamedTuple):
    """What was picked.

    Attributes:
        place: of the row in the table; None: there is none within the limits.
        unmet: which limits cannot be met, in sentences.
        nearest: places of the rows that come nearest, where none is picked.
    """

    place: int | None
    unmet: tuple[str, ...] = ()
    nearest: tuple[int, ...] = ()


def choose(rows: Sequence[Row], limits: Limits, scoring: Scoring, by: Sequence[str] = ()) -> Choice:
    """The best row of students within the limits, by the dev set; of equals the smallest.

    The drop is limited on the slices of the columns `by`, too: on each of them.

    Nothing is picked without a dev set: on documents that students are only scored on, a choice
    would say too much of them.
    """
    if not scoring.dev:
        return Choice(None)
    known = [
        (place, row)
        for place, row in enumerate(rows)
        if row.who == STUDENT and scoring.worth(row) is not None
    ]
    if not known:
        return Choice(None, ("no student was trained and scored",))
    asked = list(_limits(limits, rows, scoring, by))
    within = [place for place, row in known if not any(limit.excess(row) for limit in asked)]
    if within:
        return Choice(max(within, key=lambda place: _order(rows[place], scoring)))
    nearest = sorted(known, key=lambda one: (sum(limit.excess(one[1]) for limit in asked), one[0]))[
        :NEAREST
    ]
    return Choice(
        None,
        tuple(_unmet([row for _, row in known], asked)),
        tuple(place for place, _ in nearest),
    )


def best_student(row: Row, students: Sequence[Student], scoring: Scoring) -> str:
    """The name of the row's student that scores best on the dev set in the row's kind."""
    own = [one for one in students if one.name in row.students]
    return max(own, key=lambda one: _worth(one, row.kind, scoring)).name


def _worth(student: Student, kind: str, scoring: Scoring) -> float:
    shipped = student.shipped.get(kind, {}) if scoring.measured == "dev" else {}
    value = shipped.get(scoring.metric, student.dev)
    return float("-inf") if value is None else value if scoring.higher else -value


def with_worst(
    rows: Sequence[Row], students: Sequence[Student], limits: Limits, scoring: Scoring
) -> tuple[Row, ...]:
    """The rows, each with the slice on which it loses most: of the one of its students to take.

    That is the best on the dev set of those that keep to the drop on every slice; a mean over seeds
    may keep to it where none of them does.
    """
    above = _above(rows, scoring)

    def worst(row: Row) -> Worst | None:
        mine = [one for one in students if one.name in row.students]
        found = [(one, worst_of(one.name, one.slices.get(row.kind, {}))) for one in mine]
        known = []
        for student, lost in found:
            worth = _worth(student, row.kind, scoring)
            if lost is not None:
                overall = None if above is None or math.isinf(worth) else above - worth
                lost = replace(lost, overall=overall)
                kept = limits.max_drop is None or points_lost(lost) <= limits.max_drop
                known.append((kept, worth if kept else -points_lost(lost), lost))
        return max(known, key=lambda one: one[:2])[2] if known else None

    return tuple(row if row.who == TEACHER else replace(row, worst=worst(row)) for row in rows)


def points_lost(worst: Worst) -> float:
    """Points that a student loses where it loses most: on a slice, or on all documents."""
    return max(_points(lost) for lost in (worst.drop, worst.overall) if lost is not None)


def _points(drop: float) -> float:
    return round(POINTS * drop, 9)  # 0.91 - 0.90 is a little more than 0.01


def _above(rows: Sequence[Row], scoring: Scoring) -> float | None:
    """What the teacher in float32 is worth; None: it is not known."""
    teacher = next((row for row in rows if row.who == TEACHER), None)
    return None if teacher is None else scoring.worth(teacher)


def _order(row: Row, scoring: Scoring) -> tuple[float, float, float]:
    return (scoring.worth(row) or 0.0, -(row.bytes or 0), -(row.p50_ms or 0.0))


def _limits(
    limits: Limits, rows: Sequence[Row], scoring: Scoring, by: Sequence[str]
) -> Iterator[Limit]:
    if limits.max_mb is not None:
        yield Limit(
            "--max-mb",
            limits.max_mb,
            lambda row: None if row.bytes is None else row.bytes / 1e6,
            lambda _, value: f"takes {value:.3g} MB",
            "smallest",
        )
    if limits.max_ms is not None:
        yield Limit(
            "--max-ms",
            limits.max_ms,
            lambda row: row.p50_ms,
            lambda _, value: f"takes {value:.3g} ms",
            "fastest",
        )
    if limits.max_drop is not None:
        above = _above(rows, scoring)

        def drop(row: Row) -> float | None:
            worth = scoring.worth(row)
            return None if above is None or worth is None else _points(above - worth)

        yield Limit(
            "--max-drop",
            limits.max_drop,
            drop,
            lambda _, value: f"is {value:.3g} points of {scoring.metric} below the teacher",
            "best",
        )
        if by:
            yield Limit(
                "--max-drop",
                limits.max_drop,
                lambda row: None if row.worst is None else points_lost(row.worst),
                partial(_lost, limits.max_drop),
                "best",
                where=f" on every {' and '.join(by)}",
                called=_seed,
            )


def _seed(row: Row) -> str:
    """The name of the student that stands for a row of several seeds."""
    return row.worst.student if row.worst is not None and len(row.students) > 1 else row.name


def _lost(most: float, row: Row, points: float) -> str:
    """Where a row loses more than it may, in words: on a slice, else on all documents."""
    worst = row.worst
    assert worst is not None
    if _points(worst.drop) <= most:
        return f"is {points:.3g} points below the teacher on all documents"
    below = (
        f"is {_points(worst.drop):.3g} points of {worst.metric} below the teacher on {worst.where}"
    )
    if worst.interval is None:
        return f"{below} ({worst.size})"
    low, high = map(_points, worst.interval)
    return f"{below} ({worst.size}; the 95% interval is {low:.3g} to {high:.3g})"


def _unmet(rows: Sequence[Row], limits: Sequence[Limit]) -> Iterator[str]:
    alone = 0
    for limit in limits:
        first = min(rows, key=limit.excess)
        if not limit.excess(first):
            continue
        alone += 1
        value = limit.value(first)
        if value is None:
            yield f"{limit.said} cannot be held against anything: it is not known"
        else:
            yield (
                f"no student keeps to {limit.said}: the {limit.least}, "
                f"{limit.called(first)} in {first.kind}, {limit.words(first, value)}"
            )
    if not alone:
        flags = " and ".join(limit.said for limit in limits)
        yield f"each limit is kept by a student, and none keeps {flags} at once"
