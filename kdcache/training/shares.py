"""How much each loss counts: of the objective, and of the gradient where the losses meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from kdcache.errors import ModelError
from kdcache.losses.bound import BoundLoss
from kdcache.manifest import Json
from kdcache.models.blocks import blocks_of
from kdcache.plans.batch import Batch
from kdcache.signals import Activations
from kdcache.training.objective import Objective

AN_EPOCH = 3  # measurements of the gradient
APART = 60  # steps between two, for each loss
COST = 0.3  # of a step, for each loss: what a measurement was seen to take
DEAD, ALIVE = 0.02, 0.1  # shares of the gradient: what is named, and what is proposed


def apart(losses: int, epoch_steps: int) -> int:
    """Steps from one measurement of so many losses to the next; the first step is measured.

    So measuring costs a hundredth of a stage at most, or it is done once.
    """
    return max(-(-epoch_steps // AN_EPOCH), APART * losses)


def meeting_parameters(student: nn.Module) -> list[nn.Parameter]:
    """Parameters that every loss reaches which reads any block: those of the lowest block.

    Of blocks that are trained; of a student without a list of blocks all that is trained.
    """
    try:
        _, blocks = blocks_of(student)
    except (ModelError, AttributeError):
        blocks = nn.ModuleList()
    for module in [*blocks, student]:
        found = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if found:
            return found
    return []


class Shares:
    """Measures what each loss counts for, a few times an epoch, and names those that do not count.

    The share of the gradient is that of the norms of the losses' own gradients, each times its
    weight, at `meeting_parameters`. A device is waited for only when one is measured, or logged.

    Args:
        say: takes a line for people.
        prefix: what fields of the losses begin with, such as "stages.first.".
        others: objectives of further caches; `objective` becomes that of the step.
        balanced: whether weights are set by gradients.

    Attributes:
        last: of the last epoch, or the end of it, by loss: "objective" and "gradient".
    """

    def __init__(
        self,
        objective: Objective,
        student: nn.Module,
        args: transformers.TrainingArguments,
        say: Callable[[str], None],
        prefix: str = "",
        *,
        others: Sequence[Objective] = (),
        balanced: bool = False,
    ) -> None:
        self.balanced = balanced
        self.objective, self.say, self.prefix = objective, say, prefix
        self.all = [objective, *others]
        whole = not (args.fsdp or args.deepspeed or args.gradient_checkpointing)
        self.several = any(len(one.losses) > 1 for one in self.all)
        self.parameters = meeting_parameters(student) if whole and self.several else []
        self.last: dict[str, Json] = {}
        self._named: set[str] = set()
        self._objective: list[Mapping[str, float]] = []
        self._gradient: list[Mapping[str, float]] = []
        self._unlogged: list[Mapping[str, float]] = []

    def due(self, step: int, epoch_steps: int) -> bool:
        """Whether the gradient is measured in a step."""
        return bool(self.parameters) and step % apart(len(self.objective.losses), epoch_steps) == 0

    def norms(
        self, activations: Activations, batch: Batch, totals: Sequence[float] | None
    ) -> dict[str, float]:
        """The norm of the gradient of every loss that has one, times its weight, in a batch, whose
        graph stays as it is.
        """
        norms: dict[str, torch.Tensor] = {}
        for name, part in self.objective.parts(activations, batch, totals).items():
            if part.requires_grad and (norm := self._norm(part)) is not None:
                norms[name] = norm
        found = torch.stack(list(norms.values())).tolist() if norms else []
        return dict(zip(norms, found, strict=True))

    def note(self, norms: Mapping[str, float]) -> None:
        """Take in the norms that were measured in a step."""
        if len(norms) > 1:
            shares = _shares(norms)
            self._gradient.append(shares)
            self._unlogged.append(shares)

    def _norm(self, part: torch.Tensor) -> torch.Tensor | None:
        """The norm of a gradient at the parameters; None if it reaches none of them."""
        gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(
            part, self.parameters, retain_graph=True, allow_unused=True
        )
        norms = [torch.linalg.vector_norm(g.float()) for g in gradients if g is not None]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else None

    def logs(self, weighed: Mapping[str, float]) -> dict[str, float]:
        """What to log beside the terms' means: "share_NAME", and "gradient_NAME" if measured.

        `weighed` are these means, each times its weight.
        """
        if not self.several:
            return {}
        shares = _shares(weighed)
        if shares:
            self._objective.append(shares)
        gradient, self._unlogged = _mean(self._unlogged), []
        own = {f"share_{name}": share for name, share in shares.items()}
        return own | {f"gradient_{name}": share for name, share in gradient.items()}

    @property
    def _bound(self) -> dict[str, BoundLoss]:
        """The losses of every cache."""
        return {name: loss for one in self.all for name, loss in one.bound.items()}

    def end(self, epoch: int) -> None:
        """Look back at an epoch: name the losses that did not count in it."""
        objective, gradient = _mean(self._objective), _mean(self._gradient)
        self._objective, self._gradient = [], []
        if not (objective or gradient):
            return
        self.last = {
            name: {"objective": objective.get(name), "gradient": gradient.get(name)}
            for name in self._bound
        }
        for name, share in gradient.items():
            if min(share, objective.get(name, 1.0)) < DEAD and name not in self._named:
                self._named.add(name)
                told = self._dead if share < DEAD else _small
                self.say(told(name, share, objective.get(name), epoch))

    def _dead(self, name: str, share: float, objective: float | None, epoch: int) -> str:
        """What a person should know of a loss that does not count, and do."""
        field = f"{self.prefix}losses.{name}.weight"
        objective_share = "" if objective is None else f", and {objective:.1%} of the objective"
        loss: Any = self._bound[name].loss
        more = loss.weight * ALIVE / (1 - ALIVE) * (1 - share) / share if share else 0.0
        way = f"raise {field} from {loss.weight:g} to {more:.2g} for a tenth" if more else ""
        if self.balanced:
            way = f"give it a larger share ({self.prefix}balance.shares.{name})"
        return (
            f"losses.{name} gives {share:.1%} of the gradient in epoch {epoch}{objective_share}: "
            f"training is much as without it; "
            f"{' or '.join(filter(None, [way, 'leave the loss out']))}"
        )


def _small(name: str, share: float, objective: float | None, epoch: int) -> str:
    """What a person should know of a loss whose numbers are small, and whose gradient is not."""
    return (
        f"losses.{name} is {objective:.1%} of the objective in epoch {epoch}, and {share:.1%} of "
        "the gradient: it counts; judge its weight by the latter (gradient_* in training_log.json)"
    )


def _shares(values: Mapping[str, float]) -> dict[str, float]:
    """Values over their sum; nothing where that is no positive number."""
    total = sum(values.values())
    return {name: value / total for name, value in values.items()} if 0 < total < 1e300 else {}


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each share over the times it was measured."""
    names = dict.fromkeys(name for shares in found for name in shares)
    of = {name: [shares[name] for shares in found if name in shares] for name in names}
    return {name: sum(values) / len(values) for name, values in of.items()}
