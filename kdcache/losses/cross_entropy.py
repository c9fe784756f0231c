"""Hard labels: cross-entropy, squared error, or whatever else their kind costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.labels import LabelKind, known_rows
from kdcache.labels.classes import CLASSES
from kdcache.labels.values import VALUES
from kdcache.losses.base import LABELS, Match, Over, Pair, Step, check_number, exact, weighted
from kdcache.signals import LOGITS, Head, ModelSizes
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

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Logits against labels."""
        return (Match(LOGITS, LABELS),)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum over labelled rows."""
        (pair,) = pairs
        return hard_loss(pair.student, pair.teacher, step.weight, step.labels)


def hard_loss(
    logits_or_head: torch.Tensor | Head,
    labels: torch.Tensor,
    weight: torch.Tensor | None = None,
    kind: LabelKind | None = None,
) -> torch.Tensor:
    """Sum of the rows' losses, each times its weight; zero if no row has a label.

    Args:
        logits_or_head: logits [N, C], or a language model's head, whose logits are then never made
            whole.
        labels: class ids [N], int64, IGNORE_INDEX where there is none (cross-entropy, in nats); or
            float values [N], NaN where there is none, for logits [N, 1] (squared error); or what
            another kind takes.
        weight: [N] floating; None: one over the number of labelled rows, the mean over these.
        kind: of the labels; None: values where they are floats, else classes.
    """
    weight = _mean(known_rows(labels)) if weight is None else weight
    if isinstance(logits_or_head, Head):
        return _through_head(logits_or_head, labels, weight)
    if kind is None:
        kind = VALUES if labels.is_floating_point() else CLASSES
    return weighted(kind.hard_rows(exact(logits_or_head), labels), weight)


def _mean(known: torch.Tensor) -> torch.Tensor:
    return known.float() / known.sum().clamp(min=1)


def _through_head(head: Head, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cross-entropy by the op of soft labels, given a teacher that says nothing."""
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
            row_weight=weight,
        )
