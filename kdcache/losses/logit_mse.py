"""Squared error between the logits, or regression values, of student and teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.losses.base import CacheFacts, Needs, Over, Step, check_number, exact, require_outputs
from kdcache.plans.batch import Batch
from kdcache.signals import LOGITS, DenseLogits, SoftLabels, TeacherShape


@dataclass(frozen=True, kw_only=True)
class LogitMSE:
    """MKD's loss (Liu et al. 2019, arXiv:1911.03588), and the one for regression teachers.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        scale: factor on the teacher's logits, phi of Annealing-KD (arXiv:2104.07163) held still.
    """

    kind: ClassVar[str] = "logit_mse"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("weight of a logit_mse loss", self.weight)
        check_number("scale of logit_mse", self.scale, positive=True)

    def needs(self, name: str, facts: CacheFacts, student: TeacherShape) -> Needs:
        """Raw logits, which only logits:dense keeps."""
        if not isinstance(facts.signals.get("logits"), DenseLogits):
            raise ConfigError(
                f"losses.{name} needs raw logits (logits:dense); the cache holds {facts.held()}: "
                "use the loss kl, or build a cache with --signal logits:dense"
            )
        require_outputs(name, facts, student)
        return Needs(logits=True, matrix=True)

    def rows(self, batch: Batch, needs: Needs) -> float:
        """Rows of the logits; each has as many elements."""
        return batch.rows("logits")

    def value(self, step: Step, needs: Needs) -> torch.Tensor:
        """Mean over rows and outputs."""
        assert isinstance(step.soft, SoftLabels)
        assert step.soft.values is not None
        logits = step.beside["logits"][LOGITS]
        return logit_mse(logits, step.soft.values[:, : logits.shape[1]], self.scale)


def logit_mse(logits: torch.Tensor, values: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Mean over rows and outputs of (logits - scale * values)^2, both [N, C]; zero if N is 0."""
    said = exact(logits)
    if not len(said):
        return said.sum()
    return functional.mse_loss(said, (scale * values).to(said.dtype))
