"""What is known of the things a report tells of, each as it was read from its folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from kdcache.manifest import Json
from kdcache.sweeping.record import Record
from kdcache.training.recipe import Recipe

EVALUATION = "evaluation.json"
"""What `kdcache evaluate --json` printed, if it was put beside a student."""


@dataclass(frozen=True, kw_only=True)
class _Told:
    name: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """The facts as JSON values; of a recipe there is the name."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        folder = told["folder"]
        return {**told, "folder": None if folder is None else str(folder)}

    def unknown(self) -> Iterator[str]:
        """What is not known of it, and how it comes to be."""
        return iter(self.notes)


@dataclass(frozen=True, kw_only=True)
class StudentFacts(_Told):
    """What the folder of a student tells.

    Attributes:
        name: what it is called on the page, and nothing else is.
        folder: where it lies.
        record: of what it was trained from, its cache.json; empty where that is not there.
        recipe: how it was trained; None: there is none that this version can read.
        recipe_name: what that is called.
        metrics: figures of its training; empty where it has not ended.
        log: entries of the training log.
        evaluation: its scores on documents that chose nothing, and its teacher's on the same; None:
            not measured.
        weights: SHA-256 and bytes of each file of weights, by its name.
        notes: sentences on what is not known, and how it comes to be.
    """

    folder: Path
    record: Json
    recipe: Recipe | None = field(repr=False)
    recipe_name: str
    metrics: Json
    log: list[Json] = field(repr=False)
    evaluation: Json | None
    weights: dict[str, Json]

    @property
    def plan(self) -> Json:
        """The configuration of the plan it was trained on."""
        found: Json = self.record.get("plan_config") or {}
        return found

    @property
    def task(self) -> str:
        """What it is trained for; "" where that is not known."""
        return str((self.evaluation or {}).get("task") or self.plan.get("task") or "")

    @property
    def parameters(self) -> int | None:
        """Of its model; None where that is not known."""
        found = self.metrics.get("parameters") or (self.evaluation or {}).get("parameters")
        return None if found is None else int(found)

    def unknown(self) -> Iterator[str]:
        """What is not known of it, and how it comes to be."""
        yield from self.notes
        if self.metrics and "dev" not in self.metrics:
            yield (
                "no dev set: its weights are those of the last step (`kdcache train ... --dev "
                "FILE` chooses)"
            )
        if self.metrics and not self.evaluation:
            yield (
                "not scored on documents that chose nothing: `kdcache report ... --eval FILE`, or "
                f"`kdcache evaluate STUDENT FILE --json > STUDENT/{EVALUATION}`, does"
            )
        if self.evaluation and not self.evaluation.get("teacher"):
            yield "its teacher was not scored on the same documents (`--teacher FOLDER`)"


@dataclass(frozen=True, kw_only=True)
class CacheFacts(_Told):
    """What is known of a cache.

    Attributes:
        name: what it is called on the page.
        folder: where it lies, maybe a URL; None: nobody named it, and this is what its students
            noted.
        plan_sha256: of its plan.
        contents: digest of what it holds; None: not complete.
        plan: configuration of its plan.
        teacher: identity of its (first) teacher.
        signals: what is kept of the teacher, by name.
        fidelity: measured distance of what is decoded, by signal.
        described: `building.describe.describe_cache` of one that was opened.
        notes: sentences on what is not known.
    """

    folder: str | None
    plan_sha256: str
    contents: str | None
    plan: Json
    teacher: Json
    signals: Json
    fidelity: Json
    described: Json | None = None


@dataclass(frozen=True, kw_only=True)
class ShippedFacts(_Told):
    """What the folder of a shipped model tells.

    Attributes:
        settings: what running it takes, its inference.json.
        report: what `ship` reported; None: an earlier version did not keep that.
        bytes: of the files that run.
    """

    folder: Path
    settings: Json
    report: Json | None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class TeacherFacts(_Told):
    """What the folder of a taught teacher tells: `metrics` are those of `teach`."""

    folder: Path
    metrics: Json


@dataclass(frozen=True, kw_only=True)
class SweepFacts(_Told):
    """What the folder of a sweep tells.

    Attributes:
        record: its `sweep.json`; None: it cannot be read.
    """

    folder: Path
    record: Record | None = field(repr=False)

    def to_json(self) -> Json:
        """The facts as JSON values."""
        record = None if self.record is None else self.record.to_json()
        return {**super().to_json(), "record": record}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a report tells of.

    Attributes:
        notes: sentences on folders that could not be read.
    """

    students: tuple[StudentFacts, ...] = ()
    caches: tuple[CacheFacts, ...] = ()
    shipped: tuple[ShippedFacts, ...] = ()
    teachers: tuple[TeacherFacts, ...] = ()
    sweeps: tuple[SweepFacts, ...] = ()
    notes: tuple[str, ...] = ()

    def unknown(self) -> Iterator[str]:
        """What is not known, of everything, with its name."""
        yield from self.notes
        for one in (*self.sweeps, *self.teachers, *self.students, *self.caches, *self.shipped):
            yield from (f"{one.name}: {note}" for note in one.unknown())

    def to_json(self) -> Json:
        """The facts as JSON values, paths as texts."""
        kinds = [part.name for part in fields(self) if part.name != "notes"]
        told = {kind: [one.to_json() for one in getattr(self, kind)] for kind in kinds}
        return {**told, "notes": list(self.unknown())}
