"""Scores slice by slice, what a student loses on each of them, and the slice where it is worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from kdcache.errors import ConfigError
from kdcache.evaluation.cuts import Cut
from kdcache.evaluation.scoring import LOWER_IS_BETTER, Predictions, main_score, scores
from kdcache.evaluation.shared_teacher import Ran
from kdcache.labels import LabelKind
from kdcache.labels.base import Array, Bools
from kdcache.manifest import Json
from kdcache.plans import Plan
from kdcache.tasks import Task
from kdcache.tasks.summed import Summed, Sums

DRAWS = 1000
FEW = 10  # documents of which draws tell next to nothing
AT_ONCE = 2**20  # numbers drawn at once


def require_sliced(task: Task, kind: LabelKind | None) -> None:
    """Raise ConfigError unless there is a score by which slices of documents are told apart."""
    if task.labelled and kind is not None and kind.summed is None:
        raise ConfigError(
            f"a {kind.called} has no score that slices are told apart by (`summed` of its kind of "
            "labels): leave --by out"
        )


def sliced(
    plan: Plan, student: Predictions, cuts: Sequence[Cut], teacher: Ran | None = None
) -> Json:
    """Scores of every slice, by the column that cuts them.

    A column has `metric`, the score that slices are told apart by; `all`, its value and interval
    over all documents; `rows`, for each slice also how many `documents` it has, how many of them
    `labelled`, and in `scores` all its scores; and `worst`. With what a `teacher` says of the same
    documents there are its value and interval, and `drop`, by how much the student is worse;
    `worst_drop` is that of the slice that loses most.

    Intervals hold 95%: in closed form where a row is a document and the score has one, else by
    1,000 draws of the documents, the same ones for student and teacher. Of fewer than 10 documents
    draws tell nothing: the interval is all that the score can be. A value is None where a slice has
    no label, or nothing the score could be told of.
    """
    mine, documents = main_score(plan, student)
    theirs = None
    if teacher is not None:
        theirs, others = main_score(teacher.plan, teacher.found)
        both = np.intersect1d(documents, others)  # one may have no labelled word left of some
        mine, theirs = _only(mine, documents, both), _only(theirs, others, both)
        documents = both
    sides = _Sides(mine, theirs, closed=plan.task.rows == "document")
    return {cut.column: _column(plan, student, cut, sides, documents) for cut in cuts}


def _only(summed: Summed, documents: Array, kept: Array) -> Summed:
    """What those documents that are kept add to a score."""
    return replace(summed, adds=summed.adds[np.isin(documents, kept)])


def most_lost(
    student: Summed, teacher: Summed, cuts: Sequence[Cut], documents: Array, *, closed: bool
) -> Json:
    """The slice on which the student is furthest below the teacher, by the column that cuts it.

    Of the slices that have a score it is the one with the largest drop, sure or not, and of several
    the largest: a limit is to hold on each. It has what `sliced` tells of a row, but its `scores`,
    and the `metric`; None where no slice has a score. Both models add to their scores on the same
    `documents`, [N]; intervals in closed form are right (`closed`) where each is one row.
    """
    sides = _Sides(student, teacher, closed=closed)
    return {cut.column: _most_lost(sides, cut, cut.codes[documents]) for cut in cuts}


def _most_lost(sides: _Sides, cut: Cut, codes: Array) -> Json | None:
    found = [(sides.drop(codes == code), code) for code in range(len(cut.names))]
    known = [(drop, int((codes == code).sum()), -code) for drop, code in found if drop is not None]
    if not known:
        return None
    _, labelled, minus = max(known)
    told = sides.measured(codes == -minus)
    return {"metric": sides.name, "slice": cut.names[-minus], "labelled": labelled, **told}


class _Sides:
    """What documents add to the score, of the student and, where there is one, of the teacher."""

    def __init__(self, student: Summed, teacher: Summed | None, *, closed: bool) -> None:
        self.name, self.closed = student.name, closed
        self.sides = [student, *([] if teacher is None else [teacher])]
        self.sign = 1 if student.name in LOWER_IS_BETTER else -1  # times a score: more is worse

    @cached_property
    def overall(self) -> Json:
        """Values and intervals over all labelled documents."""
        return self.measured(np.ones(len(self.sides[0].adds), np.bool_))

    def measured(self, chosen: Bools) -> Json:
        """Values and intervals over those of N labelled documents that are `chosen`, [N]."""
        few = int(chosen.sum()) < FEW
        drawn = [] if few else draws([side.adds[chosen] for side in self.sides])
        told = []
        for place, side in enumerate(self.sides):
            sums = side.adds[chosen].sum(0)
            value = _number(side.of(sums))
            closed = side.interval(sums) if self.closed and value is not None else None
            told.append(
                {
                    "value": value,
                    "interval": closed
                    or _interval(value, [] if few else side.of(drawn[place]), side.low, side.high),
                }
            )
        if len(told) == 1:
            return told[0]
        return {**told[0], "teacher": told[1], "drop": self._drop(told, drawn)}

    def drop(self, chosen: Bools) -> float | None:
        """By how much the student is worse on those that are `chosen`; None: no score tells."""
        return self._apart([_number(side.of(side.adds[chosen].sum(0))) for side in self.sides])

    def _apart(self, values: Sequence[float | None]) -> float | None:
        mine, theirs = values
        return None if mine is None or theirs is None else self.sign * (mine - theirs) + 0.0

    def _drop(self, told: Sequence[Json], drawn: Sequence[Sums]) -> Json:
        value, (mine, theirs) = self._apart([side["value"] for side in told]), self.sides
        found: Sums | list[float] = (
            self.sign * (mine.of(drawn[0]) - theirs.of(drawn[1])) + 0.0 if drawn else []
        )
        most = mine.high - mine.low
        return {"value": value, "interval": _interval(value, found, -most, most)}


def draws(sides: Sequence[Sums]) -> list[Sums]:
    """Sums over 1,000 draws, with replacement, of the documents of what each adds, [N, K] of every
    side: [1000, K] of each, of the same draws.
    """
    rng, adds = np.random.default_rng(0), np.concatenate(sides, 1)
    count = len(adds)
    chances, step = np.full(count, 1 / count), max(1, AT_ONCE // count)
    found = [
        rng.multinomial(count, chances, size=min(step, DRAWS - start)) @ adds
        for start in range(0, DRAWS, step)
    ]
    ends = np.cumsum([side.shape[1] for side in sides])[:-1]
    return np.split(np.concatenate(found), ends, axis=1)


def _interval(
    value: float | None, found: Sums | Sequence[float], low: float, high: float
) -> list[float] | None:
    """The middle 95% of what draws tell, all that can be where they tell nothing; None of none."""
    if value is None:
        return None
    there = np.asarray(found)[np.isfinite(found)]
    return [float(b) for b in np.quantile(there, (0.025, 0.975))] if len(there) else [low, high]


def _number(value: Sums) -> float | None:
    return None if math.isnan(value) else float(value)


def _column(plan: Plan, student: Predictions, cut: Cut, sides: _Sides, documents: Array) -> Json:
    overall, labelled = sides.overall, cut.codes[documents]
    number = plan.per_document["doc_id"]
    codes = np.full(len(number), -1, np.int64)  # of documents that were not run: no slice
    codes[plan.docs] = cut.codes[number[plan.docs]]
    rows = []
    for code, name in enumerate(cut.names):
        chosen = labelled == code
        rows.append(
            {
                "slice": name,
                "documents": int((cut.codes == code).sum()),
                "labelled": int(chosen.sum()),
                **sides.measured(chosen),
                "scores": scores(plan, student.only(codes == code)) if chosen.any() else {},
            }
        )
    told: Json = {
        "metric": sides.name,
        "higher_is_better": sides.sign < 0,
        "all": {"documents": len(cut.codes), "labelled": len(documents), **overall},
        "rows": rows,
        "worst": _worst(rows, overall, sides.sign),
    }
    if "drop" in overall:
        drops = [{**row, **row["drop"]} for row in rows]
        told["worst_drop"] = _worst(drops, overall["drop"], 1)
    return told


def _worst(rows: Sequence[Json], overall: Json, sign: int) -> Json | None:
    """The worst slice, of those that are worse than all documents for sure where there are any;
    of several as bad the largest.

    `apart` is whether it is one of these: its interval lies beyond the value of all.
    """
    there = [row for row in rows if row["value"] is not None]
    if not there:
        return None
    apart = [
        row for row in there if min(sign * b for b in row["interval"]) > sign * overall["value"]
    ]
    worst = max(apart or there, key=lambda row: (sign * row["value"], row["labelled"]))
    kept = ("slice", "documents", "labelled", "value", "interval")
    return {**{key: worst[key] for key in kept}, "apart": bool(apart)}
