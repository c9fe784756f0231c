"""One match held against a cache and a student: what serves it, or why none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from kdcache.errors import ConfigError, said_of
from kdcache.losses.base import LABELS, PEERS, Loss, Match, layers_text
from kdcache.losses.bound import Bound
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.lacking import LackingError, layers_of, signal_for
from kdcache.plans.batch import Rows
from kdcache.signals import (
    LOGITS,
    POSITIONS,
    TAP_KINDS,
    ModelSizes,
    Signal,
    SoftSignal,
    SoftUse,
    Tap,
    holder,
)
from kdcache.signals.base import check_positions
from kdcache.signals.positions import positions_of
from kdcache.tasks import RowSpace, Subset

OF_DOCUMENTS = tuple(name for name, space in POSITIONS.items() if space == "document")
"""Positions that are one of a document."""
SERVES = {"all": ("all", "cls", "mean", "selected")}
"""Positions that can be made of what a cache holds; others serve themselves only."""

CALLED = {"logits": "soft labels", "hidden": "hidden states"}
"""What messages call a tap of the teacher that has another name to people."""


class Matching(NamedTuple):
    """A loss and what its matches are held against: the cache as one teacher, and a student."""

    name: str
    loss: Loss
    matches: tuple[Match, ...]
    cache: CacheSpec
    student: ModelSizes
    mark: str = ""

    def bind(self, match: Match) -> Bound:
        if match.teacher in NOT_CACHED:
            return NOT_CACHED[match.teacher](self, match)
        self._check_given(match)
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

    def _check_given(self, match: Match) -> None:
        """See to it that a student that declares what it gives does, before a cache is asked."""
        if self.student.declared is not None:
            with said_of(f"losses.{self.name} of the student"):
                self.student.width(match.student.name, match.student.layer)

    def _labels(self, match: Match) -> Bound:
        outputs, classes = self.student.outputs, self.cache.shape.outputs
        kind = self.cache.labels
        self._check_labelled()
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

    def _check_labelled(self) -> None:
        """See to it that there is a label, where a loss reads labels beside a teacher."""
        others = any(match.teacher != LABELS for match in self.matches)
        if others and not self.cache.labelled:
            raise ConfigError(
                f"losses.{self.name} takes labels beside what the teacher says, and the corpus has "
                "none: leave the loss out, or build a cache of labelled documents"
            )

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

    def _signal(self, match: Match) -> tuple[str, Signal]:
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
        asked = f"--signal {signal_for(match, self.matches, self.cache.task)}"
        raise self._lacking(
            f"losses.{self.name} needs {called}{named}; the cache holds {self.cache.held()}: build "
            f"one with {asked}",
            asked,
        )

    def _lacking(self, text: str, asked: str) -> LackingError:
        """A refusal of a cache that does not hold what the loss needs; ends with what is asked."""
        return LackingError(text, asked, self.cache, self.student)

    def _check_use(self, match: Match, signal: Signal) -> None:
        """See to it that soft labels are what the loss makes of them."""
        if match.use is None:
            return
        cache, student = self.cache, self.student
        if cache.labels.no_divergence and not match.use.raw:
            raise ConfigError(f"losses.{self.name}: {cache.labels.no_divergence}")
        lacks = cast(SoftSignal, signal).lacks(match.use, cache.shape.outputs)
        if match.use.raw and lacks:
            asked = "--signal logits:dense"
            raise self._lacking(
                f"losses.{self.name} {lacks}; the cache holds {cache.held()}: use the loss kl, or "
                f"build a cache with {asked}",
                asked,
            )
        if lacks:
            raise ConfigError(
                f"losses.{self.name}: " + lacks.replace("{loss}", f"losses.{self.name}")
            )
        if cache.task.labelled and student.outputs != cache.shape.outputs:
            raise ConfigError(
                f"losses.{self.name} compares outputs one by one; the student has "
                f"{student.outputs} and the cached teacher {cache.shape.outputs}"
            )

    def _check_layers(self, match: Match, signal: Signal) -> None:
        if match.teacher in signal.gives():
            return
        if match.teacher.how is not None:
            held = next(tap.how for tap in signal.gives() if tap.name == match.teacher.name)
            assert held is not None, "its taps are of one kind"
            needed = signal_for(match, self.matches, self.cache.task)
            asked = f"--signal {needed}"
            raise self._lacking(
                f"losses.{self.name} needs {needed}; the cache holds {self.cache.held()}: set "
                f"losses.{self.name}.views={held.views} and losses.{self.name}.ig_steps="
                f"{held.ig_steps}, or build a cache with {asked}",
                asked,
            )
        layers = [tap.layer for tap in signal.gives() if tap.name == match.teacher.name]
        there = [layer for layer in layers if layer is not None]
        wanted = layers_of(self.matches, match.teacher.name)
        lacking = [layer for layer in wanted if layer not in there]
        map_ = getattr(self.loss, "layer_map", "")
        hint = self._hint("layer_map", self._pairs(match.teacher.name, there)) if map_ else ""
        hint += self._hint("teacher_layers", there)
        needs = f": layer map {map_!r} needs" if map_ else " needs"
        asked = f"layers={layers_text(wanted)}"
        raise self._lacking(
            f"losses.{self.name}{needs} teacher layers {layers_text(wanted)}; the cache holds "
            f"layers {layers_text(there)} (lacking {layers_text(lacking)}): {hint}build a cache "
            f"with {asked}",
            asked,
        )

    def _pairs(self, tap: str, there: Sequence[int]) -> str:
        """A layer map of those pairs of a tap whose teacher's layer is there, or of the last."""
        pairs = [(m.student.layer, m.teacher.layer) for m in self.matches if m.teacher.name == tap]
        held = dict.fromkeys(pair for pair in pairs if pair[1] in there)
        top = max(ours or 0 for ours, _ in pairs)
        return ",".join(f"{ours}:{theirs}" for ours, theirs in held) or f"{top}:{there[-1]}"

    def _positions(self, match: Match, signal: Signal, stored: str) -> str:
        """Positions to compare; those that a cache holds a fraction of serve no others."""
        wanted = positions_of(match.positions) or stored
        fraction = getattr(signal, "fraction", 1)
        if wanted:
            try:
                check_positions(wanted, self.cache.task)
            except ConfigError as error:
                raise ConfigError(f"losses.{self.name}: {error}") from error
        served = wanted == stored and not (match.whole and fraction < 1)
        if served or (fraction == 1 and wanted in SERVES.get(stored, ())):
            return wanted
        part = f",fraction={fraction:g}" if fraction < 1 else ""
        hint = self._hint("positions", "cache")
        asked = f"positions={wanted}"
        raise self._lacking(
            f"losses.{self.name} needs {CALLED.get(match.teacher.name, match.teacher.name)} at "
            f"positions={wanted}; the cache holds positions={stored}{part}: {hint}build a cache "
            f"with {asked}",
            asked,
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
        per = TAP_KINDS[match.student.name].per
        if per == "document" and self.cache.task.rows != "document":
            raise ConfigError(
                f"losses.{self.name} reads {match.student}, which is a classifier's; the task of "
                f"the cache is {self.cache.task}: choose another loss"
            )
        tokens = per == "token"
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
        with said_of(f"losses.{self.name} of the student"):
            ours = self.student.width(match.student.name, match.student.layer)
        with said_of(f"losses.{self.name} of the teacher"):
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


NOT_CACHED: dict[Tap, Callable[[Matching, Match], Bound]] = {
    LABELS: Matching._labels,
    PEERS: Matching._peers,
}
"""What stands in the place of a teacher's outputs, and is in no signal."""


def _rows(signal: str, space: RowSpace, stored: str, positions: str) -> Rows:
    if isinstance(space, Subset):
        return Rows(space.of, sampled_rows=f"{signal}/kept")
    if positions == stored:
        return Rows(space)
    return Rows(POSITIONS[positions])
