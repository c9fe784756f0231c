"""The record of a sweep, `sweep.json`: what was trained, what it is worth, and what was picked.

record = read_record(Path("sweep"))
for row in record.rows:
    print(row.name, row.kind, row.dev, row.bytes, row.p50_ms, row.picked)
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.records import make
from kdcache.store.io.durable_writes import replace_synced

RECORD = "sweep.json"
FORMAT = 1
TRAINED, FAILED, WAITING = "trained", "failed", "waiting"
STUDENT, TEACHER = "student", "teacher"
KINDS = ("fp32", "int8")


@dataclass(frozen=True, kw_only=True)
class Student:
    """One training: a run folder as `kdcache train` leaves it.

    Attributes:
        name: of its folder.
        folder: that folder, as seen from the folder of the sweep.
        settings: what sets it apart, by axis: "recipe", "layers", "losses.kl.temperature", "seed".
        state: "trained", "failed" or "waiting".
        error: why it failed, in a line; None: it did not.
        seconds: that its training took; None: it is not trained.
        parameters: of its model; None: not known.
        dev: its score on the dev set; None: there is none.
        eval: its score by the same metric on the documents it is only scored on.
        shipped: by kind, "fp32" and "int8", what `ship` measured: "bytes", "p50_ms", "p95_ms",
            "peak_bytes", the scores; empty: it was not shipped.
        slices: by kind and column of `by` the slice on which it is furthest below the teacher in
            float32: "metric", "slice", how many of its documents are "labelled", "value",
            "interval", the same of the "teacher" and of the "drop"; None where no slice has a
            score. Empty: it was not scored slice by slice.
    """

    name: str
    folder: str
    settings: dict[str, Any]
    state: str = WAITING
    error: str | None = None
    seconds: float | None = None
    parameters: int | None = None
    dev: float | None = None
    eval: float | None = None
    shipped: dict[str, Any] = field(default_factory=dict)
    slices: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The slice on which a model is furthest below the teacher in float32, of those of all columns.

    Attributes:
        student: of several seeds the one that keeps to the limits and scores best, and where none
            keeps to them the one that loses least; the teacher itself in int8.
        where: the slice, in words: "domain=kitchen".
        documents: how many of it have labels.
        drop: by how much the model is worse there, of a score of 1; below 0: it is better.
        interval: which holds the drop with 95%; None: the documents tell nothing of it.
        metric: by which slices are told apart, see `kdcache.evaluate`.
        overall: by how much it is worse on all documents, in the sweep's own metric.
    """

    student: str
    where: str
    documents: int
    drop: float
    interval: tuple[float, ...] | None
    metric: str
    overall: float | None = None

    @property
    def size(self) -> str:
        """How many documents it has, in words."""
        return f"{self.documents:,} document{'s' if self.documents != 1 else ''}"


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A score over students that differ in their seed alone.

    Attributes:
        mean: of the students.
        sd: their sample standard deviation; None: there is one student.
        n: how many there are.
    """

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Mean | None:
        """The mean of the values that there are; None: there is none."""
        there = [value for value in values if value is not None]
        if not there:
            return None
        sd = statistics.stdev(there) if len(there) > 1 else None
        return cls(mean=statistics.fmean(there), sd=sd, n=len(there))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: students that differ in their seed alone, or the teacher, of one kind.

    Attributes:
        name: what sets it apart, in words; "teacher".
        who: "student" or "teacher".
        kind: "fp32" or "int8", of the weights as they are shipped.
        settings: of its students, the seed left out.
        students: their names; none of a teacher.
        dev: score on the dev set; None: there is none, or it is not known in this kind.
        eval: score on the documents that nothing is chosen on.
        parameters: of the model.
        bytes: of the files that `ship` writes; None, and so are the next two: not shipped.
        p50_ms: median milliseconds of a call with one text on one thread; the median student's.
        p95_ms: the same for the slowest twentieth.
        front: those of "bytes" and "ms" by which no row is better in both the score and that.
        worst: the slice of the dev set on which it loses most; None: none is asked for, or known.
        picked: whether this is the row to take.
    """

    name: str
    who: str
    kind: str
    settings: dict[str, Any]
    students: tuple[str, ...] = ()
    dev: Mean | None = None
    eval: Mean | None = None
    parameters: int | None = None
    bytes: int | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    front: tuple[str, ...] = ()
    worst: Worst | None = None
    picked: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a shipped student may take, `sweep --max-mb --max-ms --max-drop`.

    Attributes:
        max_mb: megabytes (1,000,000 bytes) of the files that `ship` writes.
        max_ms: milliseconds of a call with one text on one thread, the median.
        max_drop: points (hundredths) of the dev score below that of the teacher in float32; and so
            on every slice, where there are some.
    """

    max_mb: float | None = None
    max_ms: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not 0 <= value < float("inf"):
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} is a number, 0 or more; got {value}")

    def __bool__(self) -> bool:
        return any(value is not None for value in dataclasses.asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that is known of a sweep.

    Attributes:
        cache: the cache's folder or URL.
        teacher: the teacher's name.
        metric: of all scores, "accuracy", "micro_f1", "pearson", ...
        higher_is_better: whether more of it is better.
        dev: "source" and "documents" of what students are chosen on, and its "file" where it is
            one; None: none was given, and nothing is picked.
        eval: "file" of what they are only scored on; None: none was given.
        measured: of sizes and latencies "file", "documents", "threads", "calls" and "timed"; None:
            nothing was shipped.
        axes: the settings in which students differ, the seed last.
        students: in the order of the grid, or of the search.
        rows: the table, the best first; the teacher's rows come last.
        pick: name of the student to take, of the row that is `picked`; None: there is none.
        limits: what was asked of it.
        by: columns of the dev file by which students are held against the teacher slice by slice.
        unmet: sentences that say which limit cannot be met; empty: all are.
        nearest: places of `rows` that come nearest to the limits where they cannot be met.
        seconds: "trainings" (the sum of all), "shipping" and "total" (of the last call).
        workers: processes that trained; of the last call.
        threads: of each.
        notes: sentences that a person should know.
    """

    cache: str
    teacher: str
    metric: str
    higher_is_better: bool
    dev: dict[str, Any] | None
    eval: dict[str, Any] | None
    measured: dict[str, Any] | None
    axes: tuple[str, ...]
    students: tuple[Student, ...]
    rows: tuple[Row, ...] = ()
    pick: str | None = None
    limits: Limits = Limits()
    by: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    nearest: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    workers: int = 1
    threads: int = 1
    notes: tuple[str, ...] = ()

    @property
    def picked(self) -> Row | None:
        """The row to take; None: there is none."""
        return next((row for row in self.rows if row.picked), None)

    def to_json(self) -> Json:
        """The record as `sweep.json` has it."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Json) -> Record:
        """The record of the values of a `sweep.json`; ConfigError if they are none."""
        given = dict(values)
        if given.pop("format", None) != FORMAT:
            raise ConfigError(
                f"{RECORD} is of format {values.get('format')}, and this kdcache reads {FORMAT}: "
                "sweep into another folder"
            )
        given["students"] = tuple(make(Student, one, "student") for one in given["students"])
        given["rows"] = tuple(_row(row) for row in given["rows"])
        given["limits"] = make(Limits, given["limits"], "limits")
        return make(cls, given, RECORD)


def _row(values: Json) -> Row:
    kinds: dict[str, type[Mean | Worst]] = {"dev": Mean, "eval": Mean, "worst": Worst}
    made = {
        name: make(kind, found, name) if (found := values.get(name)) is not None else None
        for name, kind in kinds.items()
    }
    return make(Row, {**values, **made}, "row")


def write_record(folder: Path, record: Record) -> None:
    """Write the record into the folder of a sweep, all at once."""
    replace_synced(folder / RECORD, (json.dumps(record.to_json(), indent=1) + "\n").encode())


def read_record(folder: Path) -> Record:
    """The record of the sweep in a folder.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = folder / RECORD
    try:
        return Record.from_json(json.loads(path.read_text("utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no {RECORD}: name the folder of a sweep") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}; sweep into another folder") from error
