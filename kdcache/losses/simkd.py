"""What a classifier reads: a student's by way of a projector, so that it can be the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear

from kdcache.errors import ConfigError, one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, safe, weighted
from kdcache.signals import ModelSizes, Tap

PROJECTORS = ("linear", "bottleneck")
EPSILON = 1e-5  # of the paper's code: torch's own
MOMENTUM = 0.1  # likewise

State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SimKD:
    """A student that takes over the teacher's classifier (Chen et al. 2022, arXiv:2203.14001).

    What its classifier reads is projected to the teacher's width and drawn to what the teacher's
    reads, by the mean squared error. When training ends, projector and teacher's classifier are the
    student's classifier. Logits are compared with nothing.

    Every layer of the projector is a linear map without bias whose outputs are normalised over the
    documents of the batch; a document of weight 2 counts there like the document twice.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        projector: "linear" is one layer. The student's classifier is then one linear map as before,
            and its folder one of transformers'; what makes it nonlinear is the student's own pooler
            below. "bottleneck" is the paper's three layers with ReLU between them, of which
            nothing but a folder of kdcache's can hold the student.
        factor: how many times narrower than the teacher the bottleneck is.
        relu: a ReLU at the end too, as in the paper's networks, whose features are never negative.
            BERT's are, so that it could not reach them.
        rate: factor of the projector's own learning rate: it is drawn anew, where the student's
            layers often are not.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "simkd"
    over: ClassVar[Over] = "batch"
    reuses: ClassVar[bool] = True
    """Its student takes over the teacher's classifier."""
    weight: float = 1.0
    projector: str = "linear"
    factor: int = 2
    relu: bool = False
    rate: float = 1.0
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of a simkd loss", self.weight)
        check_number("rate of simkd", self.rate, positive=True)
        one_of("projector of simkd", self.projector, PROJECTORS)
        if self.factor < 1:
            raise ConfigError(f"factor of simkd must be 1 or more; got {self.factor}")
        if self.relu and self.projector == "linear":
            raise ConfigError(
                "relu=true of simkd takes projector=bottleneck: a linear classifier has none; "
                "leave one of the two out"
            )

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """What both classifiers read."""
        tap = Tap("pooled")
        return (Match(tap, tap, signal=self.signal, any_width=True),)

    def widths(self, student: ModelSizes, teacher: ModelSizes) -> list[int]:
        """Of what goes into each layer of the projector, and comes out of the last."""
        ours, theirs = student.width("pooled"), teacher.width("pooled")
        narrow = max(1, theirs // self.factor)
        return [ours, theirs] if self.projector == "linear" else [ours, narrow, narrow, theirs]

    def learned(self, student: ModelSizes, teacher: ModelSizes) -> nn.Module:
        """The projector."""
        return Projector(self.widths(student, teacher), relu=self.relu)

    def state(self, student: ModelSizes, teacher: ModelSizes) -> State:
        """Running mean and variance of what each layer normalises."""
        outs = self.widths(student, teacher)[1:]
        return {
            f"{what}{place}": start(width)
            for place, width in enumerate(outs)
            for what, start in (("mean", torch.zeros), ("variance", torch.ones))
        }

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum over documents of the mean squared difference; notes down running statistics."""
        (pair,) = pairs
        assert isinstance(step.learned, Projector), "the objective has made it"
        projected = step.learned(pair.student, step.weight, step.state)
        theirs = pair.teacher.dense().to(projected.dtype)
        return weighted((projected - theirs).square().mean(1), step.weight)


class Layer(NamedTuple):
    """A linear map and what follows it: weight [out, in], bias [out], and whether a ReLU does."""

    weight: torch.Tensor
    bias: torch.Tensor
    relu: bool


class Projector(nn.Module):
    """Linear maps, each with its outputs normalised over a batch, and ReLU between them.

    Args:
        widths: of what goes into each, and comes out of the last.
        relu: whether there is one at the end too.
    """

    def __init__(self, widths: Sequence[int], *, relu: bool = False) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Linear(into, out, bias=False) for into, out in pairwise(widths)
        )
        self.gains = nn.ParameterList(torch.ones(out) for out in widths[1:])
        self.shifts = nn.ParameterList(torch.zeros(out) for out in widths[1:])
        self.relus = [True] * (len(widths) - 2) + [relu]

    def forward(self, rows: torch.Tensor, weight: torch.Tensor, state: State) -> torch.Tensor:
        """Project rows [B, width] that count for `weight` [B], and update `state`."""
        total = weight.sum()
        share = (weight / safe(total)).to(self.gains[0].dtype)
        found = rows.to(self.gains[0].dtype)
        with torch.autocast(rows.device.type, enabled=False):  # which would round the statistics
            for place, relu in enumerate(self.relus):
                found = self._normalised(linear(found, self._map(place)), share, place, state)
                found = found.relu() if relu else found
        return found

    def _map(self, place: int) -> torch.Tensor:
        weight = self.maps[place].weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def _normalised(
        self, rows: torch.Tensor, share: torch.Tensor, place: int, state: State
    ) -> torch.Tensor:
        mean = (share[:, None] * rows).sum(0)
        apart = rows - mean
        variance = (share[:, None] * apart.square()).sum(0)
        _follow(state, f"mean{place}", mean, share)
        fewer = 1 - share.square().sum()  # 1 - 1/B of B documents that count alike
        unbiased = variance / safe(fewer)
        _follow(state, f"variance{place}", unbiased, share)
        normal = apart * (variance + EPSILON).rsqrt()
        found: torch.Tensor = normal * self.gains[place] + self.shifts[place]
        return found

    def layers(self, state: State) -> list[Layer]:
        """The projector as it is with the running statistics: normalisation is part of the maps."""
        found = []
        for place, relu in enumerate(self.relus):
            factor = self.gains[place] * (state[f"variance{place}"] + EPSILON).rsqrt()
            weight = factor[:, None] * self._map(place)
            found.append(Layer(weight, self.shifts[place] - factor * state[f"mean{place}"], relu))
        return found


def _follow(state: State, name: str, now: torch.Tensor, share: torch.Tensor) -> None:
    """Let a running statistic follow what is found in documents, if any of them counts."""
    before = state[name]
    after = before + MOMENTUM * (now.detach().to(before.dtype) - before)
    state[name] = torch.where(share.sum() > 0, after, before)
