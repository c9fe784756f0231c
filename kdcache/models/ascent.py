"""Points where a student and its teacher differ more than at the texts that they read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from kdcache.models.hooks import Reader
from kdcache.models.points import POINTS
from kdcache.models.run import run
from kdcache.plans.batch import Batch
from kdcache.signals import EMBEDDINGS, LOGITS, Tap
from kdcache.tasks import Task

Says = Callable[[torch.Tensor], torch.Tensor]
"""Of embedding outputs [B, L, H] the logits [B, C]."""


def ascended(
    states: torch.Tensor, student: Says, teacher: Says, *, eta: float, steps: int = 1
) -> torch.Tensor:
    """Embedding outputs moved up the gradient of the squared difference of two models' logits.

    Args:
        states: [B, L, H] floating, where both models begin.
        student, teacher: what they say of such states; gradients flow through both.
        eta: how far, in gradients of the sum over documents and classes.
        steps: how many gradients are followed, one after the other.

    Returns:
        [B, L, H] of the dtype of `states`, without a gradient.

    Source: Jafari et al. 2023, arXiv:2301.12006, of one step.
    """
    for _ in range(steps):
        states = states.detach().requires_grad_()
        apart = student(states) - teacher(states)
        (gradient,) = torch.autograd.grad(apart.square().sum(), states)
        states = states + eta * gradient
    return states.detach()


class AtPoints(nn.Module):
    """A teacher that is run at points found for a student, as one whose embedding output they are.

    Both models have one width and, for the points to mean the same to both, embeddings in one
    space: those of a student that was made of the teacher's layers.

    Gives the taps `logits` and `embeddings`.
    """

    def __init__(self, teacher: Any, student: Any, task: Task, *, eta: float, steps: int) -> None:
        super().__init__()
        self.teacher, self.student, self.task = teacher, student, task
        self.config, self.eta, self.steps = teacher.config, eta, steps
        self.tap_readers = {
            LOGITS.name: Reader(take=lambda forward: {None: forward.out.logits}),
            EMBEDDINGS.name: Reader(take=lambda forward: {None: forward.out.embeddings}),
        }

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Logits [B, C] of the teacher at the points, and these, [B, L, H]."""
        with torch.inference_mode(False):  # in which nothing is differentiated
            read = {"input_ids": input_ids, "attention_mask": attention_mask}
            if token_type_ids is not None:
                read["token_type_ids"] = token_type_ids
            batch = Batch({name: values.clone() for name, values in read.items()})
            start = self._run(self.student, batch, EMBEDDINGS).detach()
            with torch.enable_grad():
                points = ascended(
                    start,
                    lambda states: self._at(self.student, batch, states),
                    lambda states: self._at(self.teacher, batch, states),
                    eta=self.eta,
                    steps=self.steps,
                )
            with torch.no_grad():
                logits = self._at(self.teacher, batch, points)
        return SimpleNamespace(logits=logits, embeddings=points)

    @property
    def base_model(self) -> nn.Module:
        """Itself: no head runs behind it."""
        return self

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        found: torch.device = self.teacher.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """That of the teacher."""
        found: torch.dtype = self.teacher.dtype
        return found

    def get_output_embeddings(self) -> None:
        """None: it is no language model."""

    def can_generate(self) -> bool:
        """Never, for the same reason."""
        return False

    def _at(self, model: Any, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        """The logits of a model that reads points."""
        return self._run(model, batch.beside(**{POINTS: states}), LOGITS)

    def _run(self, model: Any, batch: Batch, tap: Tap) -> torch.Tensor:
        return run(model, batch, [tap], task=self.task)[tap]
