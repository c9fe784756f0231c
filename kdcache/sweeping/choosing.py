"""Which student to take: the best on the dev set among those within the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kdcache.sweeping.record import STUDENT, TEACHER, Limits, Row, Student
from kdcache.sweeping.rows import Scoring

NEAREST = 3
POINTS = 100  # of a score of 1


class Limit(NamedTuple):
    """A limit, and what it is on.

    Attributes:
        flag: what a person says.
        most: the limit.
        value: what a row takes of it; None: not known.
        words: a value in words.
        least: what the row that takes least is called.
    """

    flag: str
    most: float
    value: Callable[[Row], float | None]
    words: Callable[[float], str]
    least: str

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


def choose(rows: Sequence[Row], limits: Limits, scoring: Scoring) -> Choice:
    """The best row of students within the limits, by the dev set; of equals the smallest.

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
    asked = list(_limits(limits, rows, scoring))
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

    def worth(student: Student) -> float:
        shipped = student.shipped.get(row.kind, {}) if scoring.measured == "dev" else {}
        value = shipped.get(scoring.metric, student.dev)
        return float("-inf") if value is None else value if scoring.higher else -value

    return max((one for one in students if one.name in row.students), key=worth).name


def _order(row: Row, scoring: Scoring) -> tuple[float, float, float]:
    return (scoring.worth(row) or 0.0, -(row.bytes or 0), -(row.p50_ms or 0.0))


def _limits(limits: Limits, rows: Sequence[Row], scoring: Scoring) -> Iterator[Limit]:
    if limits.max_mb is not None:
        yield Limit(
            "--max-mb",
            limits.max_mb,
            lambda row: None if row.bytes is None else row.bytes / 1e6,
            lambda value: f"takes {value:.3g} MB",
            "smallest",
        )
    if limits.max_ms is not None:
        yield Limit(
            "--max-ms",
            limits.max_ms,
            lambda row: row.p50_ms,
            lambda value: f"takes {value:.3g} ms",
            "fastest",
        )
    if limits.max_drop is not None:
        teacher = next((row for row in rows if row.who == TEACHER), None)
        above = None if teacher is None else scoring.worth(teacher)

        def drop(row: Row) -> float | None:
            worth = scoring.worth(row)
            if above is None or worth is None:
                return None
            return round(POINTS * (above - worth), 9)  # 0.91 - 0.90 is a little more than 0.01

        yield Limit(
            "--max-drop",
            limits.max_drop,
            drop,
            lambda value: f"is {value:.3g} points of {scoring.metric} below the teacher",
            "best",
        )


def _unmet(rows: Sequence[Row], limits: Sequence[Limit]) -> Iterator[str]:
    alone = 0
    for limit in limits:
        first = min(rows, key=limit.excess)
        if not limit.excess(first):
            continue
        alone += 1
        value = limit.value(first)
        if value is None:
            yield f"{limit.flag} {limit.most:g} cannot be held against anything: it is not known"
        else:
            yield (
                f"no student keeps to {limit.flag} {limit.most:g}: the {limit.least}, "
                f"{first.name} in {first.kind}, {limit.words(value)}"
            )
    if not alone:
        flags = " and ".join(f"{limit.flag} {limit.most:g}" for limit in limits)
        yield f"each limit is kept by a student, and none keeps {flags} at once"
