"""Points that tell more of a teacher than the texts do: where a student differs from it more, and
where it comes to say another class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


LEAST = 1e-4
"""What is added to how far a class is ahead, so that steps go past the boundary."""


def supporting(
    states: torch.Tensor,
    teacher: Says,
    *,
    eta: float,
    steps: int,
    target: torch.Tensor | None = None,
    limit: float | None = None,
) -> torch.Tensor:
    """Embedding outputs moved to where a teacher leaves the class that it names, to another.

    A step of a document goes along the gradient of the target's logit over that of its own class,
    by `eta` times how far that class is ahead, until another class is: these are the samples that
    support the boundary. Documents that come to no other class stay where the last step led.

    Args:
        states: [B, L, H] floating, where the teacher begins.
        teacher: what it says of such states; gradients flow through it. Two classes or more.
        eta: how far, as a share of how far the class is ahead.
        steps: how many at most.
        target: class that each document is moved to, [B] int64; None: the teacher's second.
        limit: largest absolute value of what is moved; None: embedding outputs have no range.

    Returns:
        [B, L, H] of the dtype of `states`, without a gradient.

    Source: Heo et al. 2019, arXiv:1805.05532, who draw the target by the teacher's probabilities.
    """
    own: torch.Tensor | None = None
    for _ in range(steps):
        states = states.detach().requires_grad_()
        logits = teacher(states)
        first, second = logits.detach().topk(2, 1).indices.unbind(1)
        own = first if own is None else own
        target = second if target is None else target
        ahead = (logits.gather(1, own[:, None]) - logits.gather(1, target[:, None])).squeeze(1)
        (gradient,) = torch.autograd.grad(-ahead.sum(), states)
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        length = torch.linalg.vector_norm(wide, dim=(1, 2))
        far = eta * (ahead.detach().to(wide.dtype) + LEAST) * (first == own)
        far = far / torch.where(length > 0, length, 1.0)
        states = states + (far[:, None, None] * wide).to(states.dtype)
        states = states if limit is None else states.clamp(-limit, limit)
    return states.detach()


class AtPoints(nn.Module):
    """A teacher that is run at points, as one whose embedding output they are: those that are found
    for a student (`ascended`), or without one those at its own boundary (`supporting`).

    Both models have one width and, for the points to mean the same to both, embeddings in one
    space: those of a student that was made of the teacher's layers.

    Gives the taps `logits` and `embeddings`.
    """

    def __init__(
        self, teacher: Any, student: Any | None, task: Task, *, eta: float, steps: int
    ) -> None:
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
            begins = self.teacher if self.student is None else self.student
            start = self._run(begins, batch, EMBEDDINGS).detach()
            with torch.enable_grad():
                points = self._found(batch, start)
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

    def _found(self, batch: Batch, start: torch.Tensor) -> torch.Tensor:
        """The points of a batch, [B, L, H]."""
        teacher = partial(self._at, self.teacher, batch)
        far: Any = {"eta": self.eta, "steps": self.steps}
        if self.student is None:
            return supporting(start, teacher, **far)
        return ascended(start, partial(self._at, self.student, batch), teacher, **far)

    def _at(self, model: Any, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        """The logits of a model that reads points."""
        return self._run(model, batch.beside(**{POINTS: states}), LOGITS)

    def _run(self, model: Any, batch: Batch, tap: Tap) -> torch.Tensor:
        return run(model, batch, [tap], task=self.task)[tap]
