"""Hard labels: cross-entropy, or squared error where labels are numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.losses.base import CacheFacts, Needs, Step, check_number
from kdcache.signals import TeacherShape
from kdcache.tasks import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class Hard:
    """Loss to the corpus's own labels, or to the true tokens of language modelling.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. With soft labels beside it, this
            is the 1 - alpha of Hinton et al. 2015 (arXiv:1503.02531) and PKD (arXiv:1908.09355).
    """

    kind: ClassVar[str] = "hard"
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_number("weight of a hard loss", self.weight)

    def needs(self, name: str, facts: CacheFacts, student: TeacherShape) -> Needs:
        """Labels within the student's classes; no signal."""
        if facts.problem != "regression" and student.outputs < facts.shape.outputs:
            raise ConfigError(
                f"losses.{name}: labels go up to {facts.shape.outputs - 1}; the student has "
                f"{student.outputs} outputs"
            )
        return Needs()

    def value(self, step: Step, needs: Needs) -> torch.Tensor:
        """Mean over labelled rows."""
        return hard_loss(step.student.logits, step.labels)


def hard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over the labelled rows of `logits` [N, C]; zero if there are none.

    Args:
        labels: class ids [N], int64, IGNORE_INDEX where there is none (cross-entropy, in nats); or
            float values [N], NaN where there is none, for logits [N, 1] (squared error).
    """
    if labels.is_floating_point():
        known = labels.isfinite()
        error = torch.where(known, logits.squeeze(-1).float() - labels, 0.0)
        return error.square().sum() / known.sum().clamp(min=1)
    total = functional.cross_entropy(
        logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)
