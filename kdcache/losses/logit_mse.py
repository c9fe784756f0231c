"""Squared error between the logits, or regression values, of student and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number
from kdcache.signals import LOGITS, ModelSizes, SoftLabels, SoftUse, TeacherOutputs
from kdcache_kernels import hidden_mse

REDUCTIONS = ("element", "row")


@dataclass(frozen=True, kw_only=True)
class LogitMSE:
    """MKD's loss (Liu et al. 2019, arXiv:1911.03588), and the one for regression teachers.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        scale: factor on the teacher's logits, phi of Annealing-KD (arXiv:2104.07163), in which it
            grows to 1.
        reduction: "element" is the mean over rows and outputs, "row" the mean over rows of the sum
            over outputs, the squared distance between two vectors of logits.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "logit_mse"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    scale: float = 1.0
    reduction: str = "element"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of a logit_mse loss", self.weight)
        check_number("scale of logit_mse", self.scale, positive=True)
        one_of("reduction of logit_mse", self.reduction, REDUCTIONS)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Logits against raw logits, which only logits:dense keeps."""
        return (Match(LOGITS, LOGITS, signal=self.signal, use=SoftUse(raw=True)),)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum over rows of the mean over outputs, or of their sum."""
        ((logits, soft, _),) = pairs
        assert isinstance(soft, SoftLabels | TeacherOutputs)
        assert soft.values is not None
        outputs = logits.shape[1]
        value = logit_mse(logits, soft.values[:, :outputs], self.scale, step.weight)
        return value * outputs if self.reduction == "row" else value


def logit_mse(
    logits: torch.Tensor,
    values: torch.Tensor,
    scale: float = 1.0,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over rows of weight times the mean over outputs of (logits - scale * values)^2.

    Both are [N, C], and `weight` [N]; None: 1 / N, the mean over rows. Zero if N is 0.
    """
    return hidden_mse(logits, values if scale == 1 else scale * values, weight=weight)
