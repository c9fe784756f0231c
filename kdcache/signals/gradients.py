"""Gradients of a classifier at its embedding output, for each token: whole, or as attributions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.signals.attributing import Attributing
from kdcache.signals.features import DocumentVectors, TokenVectors
from kdcache.signals.taps import ModelSizes, Tap
from kdcache.tasks import RowSpace, Task


def _require_classifier(kind: str, task: Task) -> None:
    if task.rows != "document":
        raise ConfigError(
            f"{kind} is a gradient of what a classifier says of a document; the task is {task}: "
            "take hidden states instead (hidden:layers=...)"
        )


@dataclass(frozen=True, kw_only=True)
class Jacobian(TokenVectors):
    """The gradient of each logit at the embedding output, for each token at `positions`.

    A row has `outputs` times `hidden` values, those of one logit after the other. On a classifier
    of two classes, 384 wide, fp16 errs by 0.02% and int8 with a scale per row by 0.8%. It takes
    much room: attributions, where they will do, take a value a class.

    The teacher runs with gradients, once for every logit: see `forwards`.
    """

    kind: ClassVar[str] = "jacobian"
    codec: ClassVar[str] = "jacobian"
    tap: ClassVar[str] = "jacobian"
    example: ClassVar[str] = "jacobian:dtype=fp16"
    positions: str = "all"

    def space(self, task: Task) -> RowSpace:
        """The rows of the positions; ConfigError for a task whose models are no classifiers."""
        _require_classifier(self.kind, task)
        return super().space(task)

    def forwards(self, shape: ModelSizes) -> float:
        """About how many forwards without gradients it costs, the forward itself included."""
        return Attributing().forwards(shape.outputs)


@dataclass(frozen=True, kw_only=True)
class Attributions(DocumentVectors):
    """What a classifier's answer owes to each token: a value for each view (AD-KD, Wu et al. 2023,
    arXiv:2305.10010).

    Those of a document have length 1 in each view: fp16 errs by 0.02%. The teacher runs with
    gradients, for each view and point: see `forwards`.

    Attributes:
        views: "one", of the document's label, or "all", one a class: see `Attributing`. Of two
            classes one is enough, without steps.
        ig_steps: points of integrated gradients.
        topk: how many of the products of a token's width count; None: all.
    """

    kind: ClassVar[str] = "attribution"
    codec: ClassVar[str] = "attribution"
    tap: ClassVar[str] = "attribution"
    example: ClassVar[str] = "attribution:views=all"
    measured: ClassVar[str] = ""
    positions: ClassVar[str] = "all"
    of_one: ClassVar[bool] = True
    """A document has one class, or one value."""
    views: str = "one"
    ig_steps: int = 1
    topk: int | None = None
    dtype: str = "fp16"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.how  # which checks itself

    @property
    def how(self) -> Attributing:
        """The way they are taken."""
        return Attributing(views=self.views, ig_steps=self.ig_steps, topk=self.topk)

    def to_json(self) -> Json:
        """The configuration as JSON values, the codec last."""
        return {**self.how.settings(), **super().to_json()}

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Raise ConfigError for more of the width than there is, or another task."""
        super().check(task, shape)
        if self.topk is not None and self.topk > shape.hidden:
            raise ConfigError(
                f"attribution:topk={self.topk}: the teacher is {shape.hidden} wide; leave topk out"
            )

    def space(self, task: Task) -> RowSpace:
        """All tokens; ConfigError for a task whose models are no classifiers."""
        _require_classifier(self.kind, task)
        return "token"

    def width(self, shape: ModelSizes) -> int:
        """The views."""
        return self.how.width(shape.outputs)

    def asks_labels(self, shape: ModelSizes) -> bool:
        """Whether it is that of the label of each document."""
        return self.how.asks_labels(shape.outputs)

    def taps(self) -> tuple[Tap, ...]:
        """Attributions taken in its way."""
        return (Tap(self.tap, how=self.how),)

    def gives(self) -> tuple[Tap, ...]:
        """The same, however many of a teacher's width count: a student has a width of its own."""
        return (Tap(self.tap, how=replace(self.how, topk=None)),)

    def forwards(self, shape: ModelSizes) -> float:
        """About how many forwards without gradients it costs, the forward itself included."""
        return self.how.forwards(shape.outputs)
