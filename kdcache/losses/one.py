"""An ensemble on the fly: students that are trained together learn from what they say as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.losses.base import (
    LABELS,
    PEERS,
    Match,
    Over,
    Pair,
    Step,
    check_number,
    exact,
    weighted,
)
from kdcache.losses.cross_entropy import hard_loss
from kdcache.signals import LOGITS, ModelSizes

EPSILON = 1e-7


@dataclass(frozen=True, kw_only=True)
class ONE:
    """Native ensemble (Lan et al. 2018, arXiv:1806.04606), of students in place of branches.

    The mean of the logits of all students that are trained together (`kdcache.students.Together`):
    its cross-entropy to the labels, and T^2 KL from it, a constant there, to the student. The
    paper's branches share their lower layers, from which a gate weighs them; whole students share
    none, and count alike. Documents without a label take no part. Stands beside a loss on labels.

    Every student's loss has the cross-entropy of the ensemble: gradients are those of the paper's
    sum, whose value has it once.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        consistency: factor of the divergence. The paper lets it grow from 0 to 1.
        temperature: divides the logits of both sides; T^2 is in the loss.
    """

    kind: ClassVar[str] = "one"
    over: ClassVar[Over] = "labelled"
    weight: float = 1.0
    consistency: float = 1.0
    temperature: float = 3.0

    def __post_init__(self) -> None:
        check_number("weight of one", self.weight)
        check_number("consistency of one", self.consistency)
        check_number("temperature of one", self.temperature, positive=True)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Logits against those of the other students, and against labels."""
        return Match(LOGITS, PEERS), Match(LOGITS, LABELS)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """The sum over labelled documents."""
        (ours, peers, _), (_, labels, _) = pairs
        every = torch.stack([exact(logits) for logits in (ours, *peers)])
        together = ensemble(every)
        rows = ensemble_rows(ours, together, self.temperature)
        hard = hard_loss(together, labels, step.weight, step.labels)
        return hard + self.consistency * weighted(rows, step.weight)


def ensemble(logits: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """Logits [students, N, C] as one, [N, C]: their mean, or weighed by the softmax of a gate.

    `gate` is [N, students].
    """
    if gate is None:
        return logits.mean(0)
    return (gate.softmax(1).T[..., None] * logits).sum(0)


def ensemble_rows(
    student: torch.Tensor, together: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 sum t (log t - log q) of each row in nats, [N], t the ensemble's softmax plus 1e-7.

    `student` and `together` are logits [N, C]; no gradient flows into the latter.
    """
    target = (together.detach() / temperature).softmax(1) + EPSILON
    logq = (exact(student) / temperature).log_softmax(1)
    return temperature**2 * (target * (target.log() - logq)).sum(1)
