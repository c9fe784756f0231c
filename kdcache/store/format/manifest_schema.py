"""What a manifest says, read back with every type and range checked.

A manifest may be damaged, hand-made or hostile. Whatever sizes follow from it are bounded here,
before anything is allocated or looped over; everything wrong is a DamageError naming the field.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from kdcache.errors import CacheError, ConfigError, DamageError
from kdcache.labels import LABEL_KINDS
from kdcache.manifest import FIRST, FORMAT, FORMATS, NAMED, Json
from kdcache.plans import LABEL_DTYPE, Plan, PlanConfig, document_columns, part_rows
from kdcache.plans.identity import has_configuration
from kdcache.signals import (
    ArraySpec,
    ModelSizes,
    Signal,
    check_name,
    from_json,
    named_arrays,
    unknown_part,
)
from kdcache.store.format.fields import (
    ATTENTION,
    CACHE,
    FUNCTION,
    PLAN,
    ROWS,
    TABLE,
    TEXTS_OR_NONE,
    WIDTH,
    conform,
    damaged,
    whole,
)
from kdcache.store.format.layout import Layout
from kdcache.store.io.object_path import Root
from kdcache.tasks import STORED, TASKS, Space, Task, over

TOTAL = 2**48  # rows of an array
TEACHER = re.compile("[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")  # name of a teacher in a merged cache
OF_TASK = "task"  # of a teacher that is of another task than the plan
AT_POINTS = "at_points"  # of one that was run at points, and not on the texts
COUNTS: dict[str, Space] = {"documents": "document", "tokens": "token", "masked": "selected"}
"""What the manifest counts of a plan: rows of which space."""


@dataclass(frozen=True, kw_only=True)
class ManifestSchema:
    """Sizes and settings of a store, from its manifest alone; `signals` is empty for a plan.

    `newer` says of signals that this version does not know what it is that it does not know.

    `counts` are the plan's documents, tokens and selected positions. `teachers` are those that a
    merged cache holds beside its first, by name; their arrays lie in a folder of their own
    (docs/decisions/0009).
    """

    config: PlanConfig
    parts: int
    rows: Mapping[Space, int]
    shape: ModelSizes | None
    task: Task
    signals: Mapping[str, Signal]
    newer: Mapping[str, str]
    counts: Mapping[str, int]
    teachers: Mapping[str, ManifestSchema] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def old(self) -> bool:
        """Whether the store is of the first format."""
        return self.format == FIRST

    def array_specs(self) -> list[ArraySpec]:
        """The arrays of all signals of all teachers, as they are named in the store."""
        if self.shape is None:
            return []
        return named_arrays(self.signals, self.task, self.shape) + [
            replace(spec, name=teacher_prefix(name) + spec.name)
            for name, teacher in self.teachers.items()
            for spec in teacher.array_specs()
        ]

    def newer_names(self) -> list[str]:
        """What lies in the store under names of signals that only a newer version knows."""
        return [*self.newer] + [
            teacher_prefix(name) + below
            for name, teacher in self.teachers.items()
            for below in teacher.newer_names()
        ]

    @property
    def plan(self) -> Plan:
        """The plan without its rows: enough for layouts."""
        return Plan(
            config=self.config,
            parts=self.parts,
            rows=self.rows,
            per_document={},
            columns={},
            format=self.format,
        )

    def require_fit(self, layout: Layout, spec: ArraySpec, root: Root) -> None:
        """DamageError unless an array on disk is the one the manifest speaks of."""
        found = (str(layout.dtype), layout.row_shape, layout.part_rows)
        wanted = (spec.dtype, spec.row_shape, part_rows(self.rows, spec.space))
        if found != wanted:
            raise DamageError(
                f"{root / spec.name / 'zarr.json'} is damaged: dtype, row shape and rows of a part "
                f"are {found}; the manifest says {wanted}"
            )


def teacher_prefix(name: str) -> str:
    """Where the arrays of a teacher beside the first lie."""
    return f"teachers/{name}/"


def signal_of(array: str) -> str:
    """The signal that an array of a store is of, with the folder of its teacher."""
    parts = array.split("/")
    return "/".join(parts[: 3 if parts[0] == "teachers" else 1])


def teacher_name(name: str, taken: Collection[str] = ()) -> str:
    """What a teacher is called in a merged cache: its name, numbered where it is taken."""
    plain = re.sub("[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "teacher"
    names = (plain, *(f"{plain}-{number}" for number in range(2, len(taken) + 2)))
    return next(name for name in names if name not in taken)


def plan_specs(plan: Plan) -> list[ArraySpec]:
    """The plan's own arrays."""
    token = "uint16" if plan.config.tokenizer["vocab_size"] <= 65536 else "uint32"
    columns: list[tuple[str, Space, str]] = [("tokens", "token", token)]
    if plan.own_task.selects:
        columns.append(("plan/masked_position", "selected", "int32"))
        label = LABEL_DTYPE if plan.own_task.labelled else token
        columns.append(("plan/masked_label", "selected", label))
    return [
        ArraySpec(
            name=f"plan/{name}",
            space="document",
            row_shape=column.shape,
            axes=("output",) * len(column.shape),
            dtype=column.dtype,
        )
        for name, column in document_columns(plan.config).items()
    ] + [
        ArraySpec(name=name, space=space, row_shape=(), dtype=dtype, chunk_rows=65_536)
        for name, space, dtype in columns
    ]


def read_schema(record: Json, root: Root) -> ManifestSchema:
    """Check a manifest and read it; DamageError, or CacheError for another format's."""
    where = root / "zarr.json"
    if record.get("format") not in FORMATS:
        raise CacheError(
            f"{root} has format {record.get('format')!r:.40}; this version reads "
            f"{', '.join(map(str, FORMATS))}: use the version of kdcache that made it"
        )
    conform(record, {"plan": PLAN}, where)
    config, parts, rows = _plan(record["plan"], where)
    shape, task = None, TASKS[config.task]
    signals, newer = _Signals({}, {})
    if record.get("kind") == "cache":
        shape, task, (signals, newer) = _teacher(record, config, where, record["format"])
    plain = ManifestSchema(
        config=config,
        parts=parts,
        rows=rows,
        shape=shape,
        task=task,
        signals=signals,
        newer=newer,
        counts=_only(record["plan"], COUNTS),
        format=record["format"],
    )
    return replace(plain, teachers=_teachers(record.get("teachers", {}), plain, where))


def _teacher(
    record: Json, config: PlanConfig, where: Root, form: int, name: str = ""
) -> tuple[ModelSizes, Task, _Signals]:
    conform(record, CACHE, where, name)
    if form >= NAMED or has_configuration(
        record["teacher"]
    ):  # a merged cache has the oldest's format
        conform(record["teacher"], FUNCTION, where, f"{name}.teacher" if name else "teacher")
    attention = {key: kind for key, kind in ATTENTION.items() if key in record["shape"]}
    conform(record["shape"], attention, where, f"{name}.shape" if name else "shape")
    shape = ModelSizes(**_only(record["shape"], (*CACHE["shape"], *attention)))
    task = _task(record["teacher"], config, where)
    return shape, task, _signals(record["signals"], task, shape, where)


def _task(teacher: Json, config: PlanConfig, where: Root) -> Task:
    """What a teacher is run for: the plan's task, unless it is of another."""
    own = TASKS[config.task]
    if OF_TASK not in teacher:
        return own
    name = teacher[OF_TASK]
    if not isinstance(name, str) or name not in TASKS:
        raise damaged(where, f"teacher.{OF_TASK}", name, f"one of {', '.join(TASKS)}")
    try:
        return over(own, TASKS[name])
    except ConfigError as error:
        raise DamageError(f"{where} is damaged: teacher.{OF_TASK}: {error}") from error


def _teachers(table: Any, plain: ManifestSchema, where: Root) -> dict[str, ManifestSchema]:
    if not isinstance(table, dict) or not all(map(TEACHER.fullmatch, table)):
        raise damaged(where, "teachers", table, "a table of teachers by name")
    found = {}
    for name, record in table.items():
        shape, task, (signals, newer) = _teacher(
            record, plain.config, where, plain.format, f"teachers.{name}"
        )
        found[name] = replace(plain, shape=shape, task=task, signals=signals, newer=newer)
    return found


def _only(value: Json, names: Any) -> Json:
    return {key: value[key] for key in names}


def _plan(record: Json, where: Root) -> tuple[PlanConfig, int, dict[Space, int]]:
    task = TASKS[record["config"]["task"]]
    spaces = task.spaces
    conform(record["rows"], {STORED[s]: whole(1, ROWS) for s in spaces}, where, "plan.rows")
    rows = {space: record["rows"][STORED[space]] for space in spaces}
    if record["parts"] * max(rows.values()) > TOTAL:
        raise DamageError(
            f"{where} is damaged: {record['parts']} parts of {rows} rows are too many"
        )
    vocabulary = record["config"]["tokenizer"]
    if vocabulary["pad_id"] >= vocabulary["vocab_size"]:
        raise damaged(where, "plan.config.tokenizer.pad_id", vocabulary["pad_id"], "an id")
    config, classes = record["config"], record["config"]["corpus"].get("classes")
    if not LABEL_KINDS[config["problem"]].serves(task):
        raise damaged(where, "plan.config.problem", config["problem"], f"what {task} has")
    if not TEXTS_OR_NONE.fits(classes):
        raise damaged(where, "plan.config.corpus.classes", classes, TEXTS_OR_NONE.what)
    if LABEL_KINDS[config["problem"]].wide and not 0 < len(classes or ()) <= WIDTH:
        raise damaged(where, "plan.config.corpus.classes", classes, "a name for each output")
    try:
        return PlanConfig.from_json(record["config"]), record["parts"], rows
    except TypeError as error:
        raise DamageError(f"{where} is damaged: plan.config: {error}") from error


class _Signals(NamedTuple):
    """Signals of a manifest by name, and of those that are not known, what is new."""

    known: dict[str, Signal]
    newer: dict[str, str]


def _signals(table: Json, task: Task, shape: ModelSizes, where: Root) -> _Signals:
    found = _Signals({}, {})
    for name, values in table.items():
        if not isinstance(values, dict):
            raise damaged(where, f"signals.{name}", values, TABLE.what)
        try:
            if news := unknown_part(name, values):
                found.newer[check_name(name, name)] = news
                continue
            found.known[name] = from_json(name, values)
            found.known[name].check(task, shape)
        except (ConfigError, TypeError, ValueError, AttributeError) as error:
            raise DamageError(f"{where} is damaged: signals.{name}: {error}") from error
    return found
