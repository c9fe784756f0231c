"""Hard labels: cross-entropy, or squared error where labels are numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.losses.base import CacheFacts, Needs, Over, Step, check_number, exact
from kdcache.plans.batch import Batch
from kdcache.signals import Head, TeacherShape
from kdcache.tasks import IGNORE_INDEX
from kdcache_kernels import linear_topk_kl


@dataclass(frozen=True, kw_only=True)
class Hard:
    """Loss to the corpus's own labels, or to the true tokens of language modelling.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. With soft labels beside it, this
            is the 1 - alpha of Hinton et al. 2015 (arXiv:1503.02531) and PKD (arXiv:1908.09355).
    """

    kind: ClassVar[str] = "hard"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_number("weight of a hard loss", self.weight)

    def needs(self, name: str, facts: CacheFacts, student: TeacherShape) -> Needs:
        """Labels within the student's classes; no signal."""
        if facts.problem == "classes" and student.outputs < facts.shape.outputs:
            raise ConfigError(
                f"losses.{name}: labels go up to {facts.shape.outputs - 1}; the student has "
                f"{student.outputs} outputs"
            )
        return Needs()

    def rows(self, batch: Batch, needs: Needs) -> float:
        """Labelled rows."""
        return batch.labelled

    def value(self, step: Step, needs: Needs) -> torch.Tensor:
        """Mean over labelled rows."""
        return hard_loss(step.student.said, step.labels)


def hard_loss(said: torch.Tensor | Head, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over the labelled rows of the student's; zero if there are none.

    Args:
        said: logits [N, C], or a language model's head: its logits are then never made whole.
        labels: class ids [N], int64, IGNORE_INDEX where there is none (cross-entropy, in nats); or
            float values [N], NaN where there is none, for logits [N, 1] (squared error).
    """
    if isinstance(said, Head):
        return _through_head(said, labels)
    if labels.is_floating_point():
        known = labels.isfinite()
        error = torch.where(known, exact(said.squeeze(-1)) - labels, 0.0)
        return error.square().sum() / known.sum().clamp(min=1)
    total = functional.cross_entropy(
        exact(said), labels, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


def _through_head(head: Head, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy by the op of soft labels, given a teacher that says nothing."""
    known = labels != IGNORE_INDEX
    nothing = labels.new_full((len(labels), 1), -1)
    with head.as_in_model():
        return linear_topk_kl(
            head.hidden,
            head.weight,
            head.bias,
            nothing,
            torch.full_like(nothing, -torch.inf, dtype=torch.float32),
            tail="renormalize",
            soft_weight=0.0,
            labels=labels,
            hard_weight=1.0,
            ignore_index=IGNORE_INDEX,
            row_weight=exact(known.to(head.hidden.dtype)) / known.sum().clamp(min=1),
        )
