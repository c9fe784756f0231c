"""A sweep: what was trained, what it is worth, and what was picked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdcache.errors import KdcacheError
from kdcache.manifest import Json
from kdcache.rendering import Part, Points, Section, Text
from kdcache.reporting.facts import Facts, SweepFacts
from kdcache.reporting.groups import Group
from kdcache.reporting.pareto import COSTS, weighed
from kdcache.reporting.pictures import cost_picture
from kdcache.sweeping.record import FAILED, RECORD, TEACHER, WAITING, Record, Row, read_record
from kdcache.sweeping.result import SweepResult
from kdcache.sweeping.told import record_table
from kdcache.tasks import TASKS
from kdcache.tasks.text_classification import TEXT_CLASSIFICATION


def is_sweep(folder: Path) -> bool:
    """Whether `sweep` wrote the folder."""
    return (folder / RECORD).is_file()


def read_sweep(folder: Path, name: str) -> SweepFacts:
    """What the folder of a sweep tells."""
    try:
        record = read_record(folder)
    except KdcacheError as error:
        return SweepFacts(name=name, folder=folder, record=None, notes=(str(error),))
    return SweepFacts(name=name, folder=folder, record=record, notes=tuple(_notes(record)))


def _notes(record: Record) -> Iterator[str]:
    yield from record.unmet
    for one in record.students:
        if one.state == FAILED:
            yield f"{one.name} failed: {one.error}"
    waiting = sum(one.state == WAITING for one in record.students)
    if waiting:
        yield f"{waiting} of {len(record.students)} students are not trained yet"
    if record.dev is None:
        yield "there was no dev set, so nothing is picked"
    yield from record.notes


def picked_folder(sweep: SweepFacts) -> Path | None:
    """The folder of the student that a sweep picked, where it lies now."""
    return SweepResult(sweep.folder, sweep.record).picked if sweep.record else None


def sweep_sections(facts: Facts) -> Iterator[Section]:
    """A section for every sweep."""
    for number, sweep in enumerate(facts.sweeps):
        if sweep.record is None:
            continue
        yield Section(f"Sweep: {sweep.name}", tuple(_parts(sweep.record, number)))


def _parts(record: Record, number: int) -> Iterator[Part]:
    axes = ", ".join(record.axes) or "nothing"
    yield Text(
        f"{len(record.students)} students of {record.teacher} that differ in {axes}; "
        f"{_on(record)}. Of several seeds the mean is told, ± the standard deviation."
    )
    picked = record.picked
    if picked is not None:
        yield Text(f"Picked: {picked.name}, {picked.kind} ({record.pick}).")
    if record.by:
        yield Text(
            f"Of the slices of the dev set by {' and '.join(record.by)}, the worst is the one on "
            "which a student is furthest below the teacher in float32: of several seeds the one "
            "to take. The drop is of a score of 1, with its 95% interval."
        )
    yield record_table(record)
    group = _group(record)
    for cost in COSTS[:3]:
        picture = cost_picture(group, cost, weighed(group, cost), f"sweep-{cost.name}-{number}")
        if picture:
            yield picture
    if record.unmet:
        yield Points(record.unmet)


def _on(record: Record) -> str:
    dev = "no dev set" if record.dev is None else f"dev: {record.dev.get('source')}"
    return dev if record.eval is None else f"{dev}; test: {record.eval.get('file')}"


def _group(record: Record) -> Group:
    """The rows of a sweep as models that were scored on the same dev documents."""
    scored = {f"{row.name}, {row.kind}": row for row in record.rows if row.dev is not None}
    return Group(
        task=_task(record.metric),
        file="",
        documents=int((record.dev or {}).get("documents") or 0),
        sides={name: _side(row, record.metric) for name, row in scored.items()},
        teachers=frozenset(name for name, row in scored.items() if row.who == TEACHER),
    )


def _task(metric: str) -> str:
    """A task whose models are told apart by a score: of a sweep the score alone is noted."""
    own = (name for name, task in TASKS.items() if metric in dict(task.told))
    return next(own, TEXT_CLASSIFICATION.name)


def _side(row: Row, metric: str) -> Json:
    score = row.dev.mean if row.dev else None
    figures = {"bytes": row.bytes, "p50_ms": row.p50_ms, "parameters": row.parameters}
    return {metric: score, **figures}
