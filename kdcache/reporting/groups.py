"""Models that were measured on the same documents, so that their figures compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kdcache.evaluation.score_tables import called, headline, names_of
from kdcache.evaluation.scoring import LOWER_IS_BETTER
from kdcache.manifest import Json
from kdcache.reporting.facts import Facts, ShippedFacts, StudentFacts
from kdcache.shipping.card import NAMES

LOWER = {*LOWER_IS_BETTER, "perplexity", "calibration_error", "hamming_loss"}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Models of one task, scored on the same documents.

    Attributes:
        file: that they are of; "" where it was not noted.
        documents: how many.
        sides: what was found of each model, by its name, teachers first.
        teachers: the names of those that are teachers.
        source: of documents that chose, in words; "": they chose nothing.
    """

    task: str
    file: str
    documents: int
    sides: Mapping[str, Json]
    teachers: frozenset[str] = field(default_factory=frozenset)
    source: str = ""

    @property
    def metric(self) -> str:
        """The score that tells them apart; "" where they have none in common."""
        shared = [side for side in self.sides.values() if side]
        return headline(shared[-1], self.task) if shared else ""

    @property
    def label(self) -> str:
        """What that score is called."""
        return names_of(self.task).get(self.metric, called(self.metric))

    @property
    def higher(self) -> bool:
        """Whether more of it is better."""
        return self.metric not in LOWER

    @property
    def where(self) -> str:
        """The documents, in words."""
        if self.source:
            return f"{self.documents:,} documents that chose ({self.source})"
        return f"{f'`{self.file}`, ' if self.file else ''}{self.documents:,} documents"


def scored_groups(facts: Facts) -> list[Group]:
    """Students, with their teachers, by the documents that they were scored on."""
    found: dict[tuple[str, str, int], list[StudentFacts]] = {}
    for student in facts.students:
        scores = student.evaluation
        if scores:
            key = student.task, str(scores.get("file") or ""), int(scores.get("documents") or 0)
            found.setdefault(key, []).append(student)
    return [_scored(*key, students) for key, students in found.items()]


def _scored(task: str, file: str, documents: int, students: list[StudentFacts]) -> Group:
    teachers: dict[str, Json] = {}
    for student in students:
        theirs = (student.evaluation or {}).get("teacher")
        if theirs:
            teachers[teacher_name(student.record)] = theirs
    mine = {student.name: student.evaluation or {} for student in students}
    return Group(
        task=task,
        file=file,
        documents=documents,
        sides={**teachers, **mine},
        teachers=frozenset(teachers),
    )


def dev_groups(facts: Facts) -> list[Group]:
    """Students, with their teachers, by the dev set that they were chosen on: scores and sizes."""
    found: dict[tuple[str, str, str, int], dict[str, Json]] = {}
    for student in facts.students:
        dev = student.metrics.get("dev")
        if not dev:
            continue
        metric, teacher = dev["metric"], dev.get("teacher")
        sides = found.setdefault((student.task, metric, dev["source"], dev["documents"]), {})
        if teacher:
            theirs = (student.record.get("teacher") or {}).get("parameters")
            name = teacher_name(student.record)
            sides[name] = {metric: teacher["value"], "parameters": theirs}
        sides[student.name] = {metric: dev["best"]["value"], "parameters": student.parameters}
    students = {one.name for one in facts.students}
    return [
        Group(
            task=task,
            file="",
            documents=documents,
            sides=dict(sorted(sides.items(), key=lambda side: side[0] in students)),
            teachers=frozenset(sides) - students,
            source=source,
        )
        for (task, _, source, documents), sides in found.items()
    ]


def teacher_name(record: Json) -> str:
    """What the teacher of a student is called, given the note of its cache."""
    name = (record.get("teacher") or {}).get("name")
    return f"teacher {name}" if name and name != "teacher" else "teacher"


def shipped_groups(facts: Facts) -> list[Group]:
    """Shipped models, with what was measured beside them, by the documents they were measured on.

    A side has "bytes", "p50_ms" and the like beside its scores.
    """
    found: dict[tuple[str, int], list[ShippedFacts]] = {}
    for one in facts.shipped:
        if one.report and "models" in one.report:
            key = str(one.report.get("file") or ""), int(one.report.get("documents") or 0)
            found.setdefault(key, []).append(one)
    return [_shipped(*key, several) for key, several in found.items()]


def _shipped(file: str, documents: int, several: Iterable[ShippedFacts]) -> Group:
    sides: dict[str, Json] = {}
    teachers = set()
    for one in several:
        for name, is_teacher, row in _rows(one):
            sides[name] = row
            teachers |= {name} if is_teacher else set()
    first = sorted(sides, key=lambda name: name not in teachers)
    return Group(
        task="text-classification",
        file=file,
        documents=documents,
        sides={name: sides[name] for name in first},
        teachers=frozenset(teachers),
    )


def _rows(one: ShippedFacts) -> Iterator[tuple[str, bool, Json]]:
    """Every model that was measured: its name, whether it is the teacher, and its figures."""
    for key, row in (one.report or {})["models"].items():
        is_teacher, named = key.startswith("teacher_"), NAMES.get(key, key)
        yield named if is_teacher else f"{one.name}, {named}", is_teacher, row
