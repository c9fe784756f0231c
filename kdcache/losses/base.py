"""What a loss is: a frozen configuration that says what it needs and computes one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch

from kdcache.errors import ConfigError
from kdcache.losses.layer_maps import Pairs
from kdcache.plans.batch import Batch
from kdcache.signals import Activations, HeadLabels, LayerRows, Signal, SoftLabels, TeacherShape
from kdcache.tasks import RowSpace, Task

Over = Literal["rows", "documents", "batch"]
"""What a loss is a mean over: its own count of rows, documents, or, in a loss that compares the
documents of a batch with each other, a batch that nobody may cut."""


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """What losses ask of a cache, known without reading a row.

    Attributes:
        problem: "classes", "regression" or "tokens".
        shape: sizes of the teacher.
        labelled: documents with a hard label.
    """

    task: Task
    problem: str
    signals: Mapping[str, Signal]
    shape: TeacherShape
    labelled: int

    def space_of(self, signal: str) -> RowSpace:
        """The row space of a signal of the cache."""
        return self.signals[signal].arrays(self.task, self.shape)[0].space

    def held(self) -> str:
        """The signals of the cache, for messages."""
        kept = [f"{name} ({_settings(signal)})" for name, signal in self.signals.items()]
        return " and ".join(kept) or "no signals"


def _settings(signal: Signal) -> str:
    values = {k: v for k, v in signal.to_json().items() if v is not None and v != "hidden"}
    return ", ".join(
        f"{k}={'-'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in values.items()
    )


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one loss reads.

    Attributes:
        logits: whether it reads soft labels.
        matrix: whether it reads the student's logits as a matrix, which a fused loss does not.
        pairs: (student layer, teacher layer) it compares.
        positions: rows it compares hidden states at.
        stored: positions the cache holds; `positions` are picked out of them.
        projections: names of the linear maps to learn, by student layer; layers may share one.
    """

    logits: bool = False
    matrix: bool = False
    pairs: Pairs = ()
    positions: str = ""
    stored: str = ""
    projections: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One batch as losses see it.

    Attributes:
        student: what the student said; of a language model perhaps the head that would say it.
        beside: the same at the rows that a signal has, by its name: all, or a fraction of them.
        labels: hard labels, a row per row of the logits; IGNORE_INDEX or NaN where there is none.
        soft: the teacher's soft labels, a row per row of the logits beside them.
        wider: whether these are of more outputs than the student has, see `losses.shared`.
        hidden: stored hidden states by teacher layer.
        project: apply the learned projection of a name to rows [N, student width].
    """

    student: Activations
    beside: Mapping[str, Activations]
    labels: torch.Tensor
    soft: SoftLabels | HeadLabels | None
    wider: bool
    hidden: Mapping[int, LayerRows]
    project: Callable[[str, torch.Tensor], torch.Tensor]


class Loss(Protocol):
    """A frozen dataclass with a `weight`; the objective is the weighted sum of all losses.

    `value` is a mean over the batch that it sees. A step may be cut into micro-batches and dealt
    out to ranks: `over` and `rows` say how much each one's mean counts for in that of the step.
    """

    kind: ClassVar[str]
    over: ClassVar[Over]

    @property
    def weight(self) -> float: ...

    def needs(self, name: str, facts: CacheFacts, student: TeacherShape) -> Needs:
        """What it reads; ConfigError, naming what is there, if cache or student lack it."""
        ...

    def rows(self, batch: Batch, needs: Needs) -> float:
        """What `value` divides by: asked of a loss over rows alone, for no other batch."""
        ...

    def value(self, step: Step, needs: Needs) -> torch.Tensor:
        """The loss of a batch before its weight, a scalar."""
        ...


def check_number(what: str, value: float, *, positive: bool = False) -> None:
    """Raise ConfigError unless `value` is finite and 0 or more (more than 0 if `positive`)."""
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        least = "more than 0" if positive else "0 or more"
        raise ConfigError(f"{what} must be {least} and finite; got {value}")


def require_outputs(name: str, facts: CacheFacts, student: TeacherShape) -> None:
    """Raise ConfigError unless a student has the classes of the teacher.

    Language models of one vocabulary may have unequal outputs, see `losses.shared`.
    """
    if facts.problem != "tokens" and student.outputs != facts.shape.outputs:
        raise ConfigError(
            f"losses.{name} compares outputs one by one; the student has {student.outputs} and the "
            f"cached teacher {facts.shape.outputs}"
        )


def exact(x: torch.Tensor) -> torch.Tensor:
    """`x` as losses add it up: in float64 if it is, else in float32."""
    return x if x.dtype == torch.float64 else x.float()


def layers_text(layers: Sequence[int]) -> str:
    """Layer numbers as signals take them: 2-4-6."""
    return "-".join(map(str, layers))
