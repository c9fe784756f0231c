"""Mutual learning: students that are trained together learn from what the others say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.losses.base import PEERS, Match, Over, Pair, Step, check_number, exact, weighted
from kdcache.signals import LOGITS, ModelSizes

Divergence = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""Of outputs of two models, [N, C], at a temperature: of each row, [N], without T^2."""


@dataclass(frozen=True, kw_only=True)
class Mutual:
    """KL(peer || student), mean over the peers, which are constants of a step.

    For students that are trained as one module (`kdcache.students.Together`): each has its peers.
    Of the teacher nothing is read, so it stands beside a loss on soft or hard labels.

    Source: Zhang et al. 2018, Deep Mutual Learning, arXiv:1706.00384, at temperature 1. Their code
    lets gradients into the peers, where the paper takes them as they are.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        temperature: divides the logits of both sides; T^2 is in the loss.
    """

    kind: ClassVar[str] = "mutual"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_number("weight of a mutual loss", self.weight)
        check_number("temperature of mutual", self.temperature, positive=True)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Logits against those of the other students."""
        return (Match(LOGITS, PEERS),)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """The sum over rows of the mean over peers."""
        ((ours, peers, _),) = pairs
        rows = mutual_rows(ours, peers, self.temperature, step.labels.divergence)
        return weighted(rows, step.weight)


def mutual_rows(
    student: torch.Tensor,
    peers: Sequence[torch.Tensor],
    temperature: float = 1.0,
    divergence: Divergence | None = None,
) -> torch.Tensor:
    """T^2 KL(peer || student) of each row in nats, mean over the peers, [N].

    `student` and each of `peers` are logits [N, C]; no gradient flows into the peers. `divergence`
    is that of their kind of label; None: that of a softmax.
    """
    apart = divergence or _of_softmax
    found = [apart(exact(student), exact(peer.detach()), temperature) for peer in peers]
    return temperature**2 * torch.stack(found).mean(0)


def _of_softmax(student: torch.Tensor, peer: torch.Tensor, temperature: float) -> torch.Tensor:
    ours = torch.log_softmax(student / temperature, -1)
    theirs = torch.log_softmax(peer / temperature, -1)
    return (theirs.exp() * (theirs - ours)).sum(-1)
