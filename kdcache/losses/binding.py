"""What a loss matches, held against a cache and a student once: the one place that refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from kdcache.errors import ConfigError
from kdcache.labels import LABEL_KINDS, LabelKind
from kdcache.losses.base import LABELS, PEERS, Loss, Match, layers_text
from kdcache.losses.teachers import CHOOSERS, FIRST, Teaching
from kdcache.plans.batch import Rows
from kdcache.signals import (
    LOGITS,
    POSITIONS,
    TAP_KINDS,
    ModelSizes,
    Signal,
    SoftUse,
    Tap,
    holder,
)
from kdcache.signals.base import check_positions, settings_text
from kdcache.tasks import RowSpace, Subset, Task

OF_DOCUMENTS = tuple(name for name, space in POSITIONS.items() if space == "example")
"""Positions that are one of a document."""
SERVES = {"all": ("all", "cls", "masked")}
"""Positions that can be picked out of what a cache holds; others serve themselves only."""

CALLED = {"logits": "soft labels", "hidden": "hidden states"}
"""What messages call a tap of the teacher that has another name to people."""


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """What there is to learn from in a cache, known without reading a row.

    Attributes:
        label_kind: name of the kind of its labels.
        shape: sizes of the teacher.
        labelled: documents with a hard label.
        name: of the teacher.
        prefix: what the names of its arrays begin with in a batch.
        others: the same of the cache's further teachers, by name.
    """

    task: Task
    label_kind: str
    signals: Mapping[str, Signal]
    shape: ModelSizes
    labelled: int
    name: str = ""
    prefix: str = ""
    others: Mapping[str, CacheSpec] = field(default_factory=dict)

    @property
    def teachers(self) -> Mapping[str, CacheSpec]:
        """The cache as each of its teachers, by name, the first one first."""
        return {self.name: self, **self.others}

    @property
    def labels(self) -> LabelKind:
        """The kind of its labels."""
        return LABEL_KINDS[self.label_kind]

    def held(self) -> str:
        """The signals of the teacher, for messages."""
        held = [f"{name} ({_settings(signal)})" for name, signal in self.signals.items()]
        of = f" of teacher {self.name}" if self.prefix or self.others else ""
        return (" and ".join(held) or "no signals") + of

    def shared(self, student: ModelSizes) -> int | None:
        """How many outputs both have; None where neither has more than that.

        Language models pad their output layers to sizes that suit their machines; what lies beyond
        the vocabulary means nothing, and seldom has as many rows in a teacher and its student.
        """
        if self.label_kind != "tokens" or student.outputs == self.shape.outputs:
            return None
        return min(student.outputs, self.shape.outputs)


class Bound(NamedTuple):
    """A match of which the cache holds the teacher's side.

    Attributes:
        student: what is read out of the student.
        teacher: what of the signal.
        signal: its name in a batch; "" for labels.
        source: the cache as the teacher that it is of.
        outputs: how many outputs student and teacher share; None: all of them.
        space: the rows that are stored.
        stored: their positions, of tokens.
        positions: those that are compared: all of the stored ones, or some picked out of them.
        rows: what the compared rows are in a batch.
        arrays: what has to be read of the cache.
        project: name of the learned map among those of all losses; "": none.
    """

    student: Tap
    teacher: Tap
    signal: str
    source: CacheSpec
    outputs: int | None
    space: RowSpace
    stored: str
    positions: str
    rows: Rows
    arrays: tuple[str, ...] = ()
    project: str = ""

    @property
    def held(self) -> Signal:
        """The signal."""
        return self.source.signals[self.signal.removeprefix(self.source.prefix)]


class BoundLoss(NamedTuple):
    """A loss with all its matches.

    Attributes:
        taught: its matches by teacher.
        rows: those that its weights are of.
        choose: the policy by which teachers count; "": there is but one, which counts whole.
        probability: of each teacher.
        soft: where the policy asks for labels, each teacher's own soft labels.
    """

    name: str
    loss: Loss
    taught: Mapping[str, tuple[Bound, ...]]
    rows: Rows
    choose: str = ""
    probability: tuple[float, ...] = ()
    soft: Mapping[str, Bound] = MappingProxyType({})

    @property
    def matches(self) -> tuple[Bound, ...]:
        """Its matches with all teachers."""
        return tuple(match for matches in self.taught.values() for match in matches)


def bind(
    name: str, loss: Loss, cache: CacheSpec, student: ModelSizes, teaching: Teaching = FIRST
) -> BoundLoss:
    """The matches of losses.`name` on a cache; ConfigError if cache or student cannot serve one."""
    names = teaching.of(name, tuple(cache.teachers))
    sides = {}
    for place, teacher in enumerate(names):
        source = cache.teachers[teacher]
        wanted = tuple(loss.matches(student, source.shape))
        mark = f"_t{place}" if len(names) > 1 else ""
        sides[teacher] = _Where(name, loss, wanted, source, student, mark)
    taught = {t: tuple(map(where.bind, where.matches)) for t, where in sides.items()}
    for teacher, where in sides.items():
        where.check_shared(taught[teacher])
    matches = [match for bound in taught.values() for match in bound]
    if teaching != FIRST and all(match.teacher == LABELS for match in matches):
        raise ConfigError(
            f"losses.{name} learns from labels: teachers and choose are for losses that learn from "
            "a teacher; leave them out"
        )
    rows = _rows_of(name, loss, matches, several=len(names) > 1)
    found = BoundLoss(name, loss, taught, rows)
    if len(names) == 1 and teaching.choose == FIRST.choose:
        return found
    soft: dict[str, Bound] = {}
    if CHOOSERS[teaching.choose].labels:
        soft = {t: where.on_labels(teaching.choose) for t, where in sides.items()}
    return found._replace(choose=teaching.choose, probability=teaching.probability, soft=soft)


def _rows_of(name: str, loss: Loss, matches: Sequence[Bound], *, several: bool) -> Rows:
    """The rows that a loss is a mean over; ConfigError where its matches have not the same."""
    if loss.over in ("documents", "batch") or not matches:
        return Rows("example")
    spaces = {match.rows for match in matches}
    if len(spaces) > 1:
        which = "its matches with all its teachers" if several else "its matches"
        raise ConfigError(
            f"losses.{name} is a mean over the rows of {which}, which are not the same: "
            f"{', '.join(sorted(map(_rows_text, spaces)))}; make it one loss for each"
        )
    (rows,) = spaces
    return rows._replace(padded=loss.over == "padded")


class _Where(NamedTuple):
    """What the checks of one loss share."""

    name: str
    loss: Loss
    matches: tuple[Match, ...]
    cache: CacheSpec
    student: ModelSizes
    mark: str = ""

    def bind(self, match: Match) -> Bound:
        if match.teacher in NOT_CACHED:
            return NOT_CACHED[match.teacher](self, match)
        name, signal = self._signal(match)
        self._check_use(match, signal)
        self._check_layers(match, signal)
        stored = getattr(signal, "positions", "")
        specs = signal.arrays(self.cache.task, self.cache.shape)
        positions = self._positions(match, signal, stored)
        self._check_rows(match, positions)
        name = self.cache.prefix + name
        return Bound(
            student=match.student,
            teacher=match.teacher,
            signal=name,
            source=self.cache,
            outputs=self.cache.shared(self.student),
            space=specs[0].space,
            stored=stored,
            positions=positions,
            rows=_rows(name, specs[0].space, stored, positions),
            arrays=tuple(f"{name}/{s.name}" for s in specs if s.read_for(match.teacher)),
            project=self._project(match),
        )

    def _labels(self, match: Match) -> Bound:
        outputs, classes = self.student.outputs, self.cache.shape.outputs
        kind = self.cache.labels
        if kind.wide and outputs != classes:
            raise ConfigError(
                f"losses.{self.name}: a document has {classes} labels; the student has {outputs} "
                "outputs"
            )
        if kind.column and outputs < classes:
            raise ConfigError(
                f"losses.{self.name}: labels go up to {classes - 1}; the student has {outputs} "
                "outputs"
            )
        space = self.cache.task.rows
        rows, both = Rows(space, labelled=True), self.cache.shared(self.student)
        return Bound(match.student, match.teacher, "", self.cache, both, space, "", "", rows)

    def on_labels(self, choose: str) -> Bound:
        """The teacher's soft labels, for its cross-entropy on hard ones."""
        if not self.cache.labelled or self.cache.labels.no_divergence:
            why = "the corpus has none" if not self.cache.labelled else "they are values"
            raise ConfigError(
                f"losses.{self.name}.choose={choose} weighs teachers by their cross-entropy on the "
                f"labels, and {why}: choose all, or sampled"
            )
        return self.bind(Match(LOGITS, LOGITS, use=SoftUse()))

    def _peers(self, match: Match) -> Bound:
        if not self.student.peers:
            raise ConfigError(
                f"losses.{self.name} lets several students learn from each other, and one is "
                "trained: pass kdcache.students.Together([...]) as the student, or leave it out"
            )
        if self.cache.labels.no_divergence:
            raise ConfigError(
                f"losses.{self.name} compares probabilities of students, and these give values: "
                "leave it out"
            )
        space, both = self.cache.task.rows, self.cache.shared(self.student)
        return Bound(match.student, match.teacher, "", self.cache, both, space, "", "", Rows(space))

    def _signal(self, match: Match) -> tuple[str, Any]:
        """The signal that has the teacher's side, by the name it goes under in the cache."""
        tap, signals = match.teacher, self.cache.signals
        able = [n for n, s in signals.items() if tap.name in {known.name for known in s.gives()}]
        first = tap.name if tap.name in able else next(iter(able), "")
        name = match.signal or holder(signals, tap) or first
        if name in able:
            return name, signals[name]
        raw = match.use is not None and match.use.raw
        called = "raw logits" if raw else CALLED.get(tap.name, tap.name)
        named = f" under the name {match.signal}" if match.signal else ""
        raise ConfigError(
            f"losses.{self.name} needs {called}{named}; the cache holds {self.cache.held()}: build "
            f"one with --signal {self._build(match)}"
        )

    def _build(self, match: Match) -> str:
        """The signal to build for a match."""
        tap, options = match.teacher, []
        name = f"{match.signal}=" if match.signal else ""
        if match.use is not None:
            return f"{name}logits:dense" + ("" if match.use.raw else f" or {name}logits:topk")
        if tap.layer is not None:
            options.append(f"layers={layers_text(self._layers(tap.name))}")
        if TAP_KINDS[tap.name].per == "token":
            options.append(f"positions={match.positions or 'cls'}")
        return ":".join(filter(None, [name + tap.name, ",".join(options)]))

    def _layers(self, name: str) -> list[int]:
        """The layers that its matches read of one tap of the teacher."""
        layers = {match.teacher.layer for match in self.matches if match.teacher.name == name}
        return sorted(layer for layer in layers if layer is not None)

    def _check_use(self, match: Match, signal: Any) -> None:
        """See to it that soft labels are what the loss makes of them."""
        if match.use is None:
            return
        cache, student = self.cache, self.student
        if cache.labels.no_divergence and not match.use.raw:
            raise ConfigError(f"losses.{self.name}: {cache.labels.no_divergence}")
        lacks = signal.lacks(match.use, cache.shape.outputs)
        if match.use.raw and lacks:
            raise ConfigError(
                f"losses.{self.name} {lacks}; the cache holds {cache.held()}: use the loss kl, or "
                "build a cache with --signal logits:dense"
            )
        if lacks:
            raise ConfigError(
                f"losses.{self.name}: " + lacks.replace("{loss}", f"losses.{self.name}")
            )
        if cache.label_kind != "tokens" and student.outputs != cache.shape.outputs:
            raise ConfigError(
                f"losses.{self.name} compares outputs one by one; the student has "
                f"{student.outputs} and the cached teacher {cache.shape.outputs}"
            )

    def _check_layers(self, match: Match, signal: Any) -> None:
        if match.teacher in signal.gives():
            return
        there = [tap.layer for tap in signal.gives() if tap.name == match.teacher.name]
        wanted = self._layers(match.teacher.name)
        lacking = [layer for layer in wanted if layer not in there]
        map_, hint = getattr(self.loss, "layer_map", ""), ""
        if map_:
            hint = f"set losses.{self.name}.layer_map to pairs such as '1:{there[0]}', or "
        hint += self._hint("teacher_layers", there)
        raise ConfigError(
            f"losses.{self.name}: {f'layer map {map_!r} needs ' if map_ else 'needs '}teacher "
            f"layers {layers_text(wanted)}; the cache holds layers {layers_text(there)} "
            f"(lacking {layers_text(lacking)}): {hint}build a cache with "
            f"layers={layers_text(wanted)}"
        )

    def _positions(self, match: Match, signal: Any, stored: str) -> str:
        """Positions to compare; those that a cache holds a fraction of serve no others."""
        wanted = match.positions or stored
        fraction = getattr(signal, "fraction", 1)
        if wanted:
            try:
                check_positions(wanted, self.cache.task)
            except ConfigError as error:
                raise ConfigError(f"losses.{self.name}: {error}") from error
        if wanted == stored or (fraction == 1 and wanted in SERVES.get(stored, ())):
            return wanted
        part = f",fraction={fraction:g}" if fraction < 1 else ""
        hint = self._hint("positions", "cache")
        raise ConfigError(
            f"losses.{self.name} needs {CALLED.get(match.teacher.name, match.teacher.name)} at "
            f"positions={wanted}; the cache holds positions={stored}{part}: {hint}build a cache "
            f"with positions={wanted}"
        )

    def check_shared(self, matches: Sequence[Bound]) -> None:
        """See to it that matches which share a learned map have one width."""
        widths: dict[str, set[int]] = {}
        for match in matches:
            if match.project:
                width = self.student.width(match.student.name, match.student.layer)
                widths.setdefault(match.project, set()).add(width)
        for found in widths.values():
            if len(found) > 1:
                raise ConfigError(
                    f"losses.{self.name} learns one map for layers of the student that are "
                    f"{' and '.join(map(str, sorted(found)))} wide: set "
                    f"losses.{self.name}.shared_projection=false, or match layers of one width"
                )

    def _check_rows(self, match: Match, positions: str) -> None:
        """See to it that a token of the student is held against a token, a document against one."""
        tokens = TAP_KINDS[match.student.name].per == "token"
        served = POSITIONS if tokens else ("", *OF_DOCUMENTS)
        if match.use is None and positions not in served:
            rows = f"tokens at positions={positions}" if positions else "a row of a document"
            raise ConfigError(
                f"losses.{self.name} holds {match.student} against {match.teacher}, which has "
                f"{rows}: their rows are not the same; match a tap of the same kind"
            )

    def _hint(self, option: str, value: object) -> str:
        """The other way out, for a loss that has such an option."""
        if not hasattr(self.loss, option):
            return ""
        return f"set losses.{self.name}.{option}={value}, or "

    def _project(self, match: Match) -> str:
        if match.project is not None:
            return "_".join(filter(None, [f"{self.name}{self.mark}", match.project]))
        if match.use is not None or match.any_width:
            return ""
        ours = self.student.width(match.student.name, match.student.layer)
        theirs = self.cache.shape.width(match.teacher.name)
        if ours == theirs:
            return ""
        hint = ""
        if hasattr(self.loss, "projection"):
            hint = f"; set losses.{self.name}.projection=linear to learn a map between them"
        raise ConfigError(
            f"losses.{self.name}: the student's {match.student.name} width is {ours}, the cached "
            f"teacher's {theirs}{hint}"
        )


NOT_CACHED: dict[Tap, Callable[[_Where, Match], Bound]] = {
    LABELS: _Where._labels,
    PEERS: _Where._peers,
}
"""What stands in the place of a teacher's outputs, and is in no signal."""


def _rows(signal: str, space: RowSpace, stored: str, positions: str) -> Rows:
    if isinstance(space, Subset):
        return Rows(space.of, sampled_rows=f"{signal}/kept")
    if positions == stored:
        return Rows(space)
    return Rows("example" if positions == "cls" else "masked")


def _rows_text(rows: Rows) -> str:
    return f"{rows.space} ({rows.sampled_rows})" if rows.sampled_rows else rows.space


def _settings(signal: Signal) -> str:
    values = {name: value for name, value in signal.to_json().items() if value != signal.kind}
    return settings_text(values, ", ")
