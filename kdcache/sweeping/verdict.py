"""The record of a sweep, made of what was found: table, choice, and what a person should know."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from kdcache.evaluation.scoring import LOWER_IS_BETTER
from kdcache.manifest import Json
from kdcache.progress import short
from kdcache.shipping.verdict import beats
from kdcache.sweeping.asked import Asked
from kdcache.sweeping.choosing import best_student, choose, with_worst
from kdcache.sweeping.record import FAILED, TEACHER, Record, Row, Student
from kdcache.sweeping.rows import DEV, EVAL, Scoring, rows_of


def record_of(
    asked: Asked,
    students: Sequence[Student],
    *,
    dev: Json | None,
    teacher: Json | None,
    teacher_scores: Json,
    metric: str,
    seconds: dict[str, float],
    notes: Sequence[str],
) -> Record:
    """The record of a sweep; `dev` is what a run tells of its dev set, `teacher` what was measured.

    `teacher_scores` are those on the dev set where it was run for the slices; `metric` names the
    scores where there is no dev set.
    """
    train = asked.train
    files = {DEV: train["dev"], EVAL: train["eval_file"]}
    measured = next((name for name, file in files.items() if file == asked.measure), None)
    scoring = Scoring(
        metric=dev["metric"] if dev else metric,
        higher=dev["higher_is_better"] if dev else metric not in LOWER_IS_BETTER,
        measured=measured if asked.ship and asked.measure else None,
        dev=dev is not None,
    )
    ran = teacher_scores.get(scoring.metric)
    known = ran if ran is not None or not dev or not dev["teacher"] else dev["teacher"]["value"]
    axes = asked.grid.differing
    rows = rows_of(students, teacher, axes, scoring, known)
    if asked.by:
        rows = with_worst(rows, students, asked.limits, scoring)
    choice = choose(rows, asked.limits, scoring, asked.by)
    pick = None
    if choice.place is not None:
        row = rows[choice.place]
        pick = row.worst.student if row.worst else best_student(row, students, scoring)
        rows = tuple(
            dataclasses.replace(row, picked=place == choice.place) for place, row in enumerate(rows)
        )
    return Record(
        cache=str(asked.cache.path),
        teacher=asked.cache.manifest["teacher"]["name"],
        metric=scoring.metric,
        higher_is_better=scoring.higher,
        dev=_dev(dev, files[DEV]),
        eval=None if files[EVAL] is None else {"file": short(files[EVAL])},
        measured=None if teacher is None else teacher["about"],
        axes=axes,
        students=tuple(students),
        rows=rows,
        pick=pick,
        limits=asked.limits,
        by=asked.by,
        unmet=choice.unmet if asked.limits else (),
        nearest=choice.nearest,
        seconds=seconds,
        workers=asked.workers,
        threads=asked.threads,
        notes=(*notes, *_said(students, rows, scoring)),
    )


def _dev(dev: Json | None, file: str | None) -> dict[str, Any] | None:
    if dev is None:
        return None
    own = {"source": dev["source"], "documents": dev["documents"]}
    return own if file is None else {**own, "file": short(file)}


def _said(students: Sequence[Student], rows: Sequence[Row], scoring: Scoring) -> Iterator[str]:
    failed = [one.name for one in students if one.state == FAILED]
    if failed:
        yield f"{len(failed)} of {len(students)} students failed: {', '.join(failed)}"
    picked = next((row for row in rows if row.picked), None)
    small = next((row for row in rows if row.who == TEACHER and row.kind == "int8"), None)
    if picked is None or small is None or None in (picked.p50_ms, small.p50_ms):
        return
    if picked.worst and small.worst and small.worst.drop > picked.worst.drop:
        return
    if beats(_plain(small, scoring), _plain(picked, scoring), "score"):
        yield (
            "the teacher in int8 is no larger and no slower than the student that was picked, and "
            "scores as well or better: ship the teacher"
        )


def _plain(row: Row, scoring: Scoring) -> Json:
    """A row as the verdict on shipped models reads it."""
    return {"bytes": row.bytes, "p50_ms": row.p50_ms, "score": scoring.worth(row)}
