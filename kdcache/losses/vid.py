"""Variational information: what can be told of the teacher's hidden states from the student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import softplus

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, weighted
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LayerMap, layer_pairs
from kdcache.losses.layer_matches import hidden_matches
from kdcache.signals import ModelSizes

POSITIONS = ("cls", "mean", "all")
VARIANCE, LEAST = 5.0, 1e-5


@dataclass(frozen=True, kw_only=True)
class VID:
    """Variational information distillation (Ahn et al. 2019, arXiv:1904.05835).

    Three linear maps without bias, ReLU between them, make a mean of the student's hidden state,
    and every column has a learned variance: the negative log-likelihood of the teacher's state
    under that normal distribution, without its constant, mean over rows and width. It may be
    negative. Maps and variances are thrown away after training.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. RepDistiller takes 1.
        layer_map: which layers, as in the loss `hidden`; each has maps and variances of its own.
        positions: "all" tokens, pads left out, or the vectors "cls" or "mean".
        layers: how the mapped layers become one number: "mean", "sum", or another of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "vid"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    layer_map: LayerMap = "uniform"
    positions: str = "all"
    layers: str = "sum"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of vid", self.weight)
        one_of("positions of vid", self.positions, POSITIONS)
        one_of("layers of vid", self.layers, COMBINE)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The mapped layers, of any widths."""
        pairs = layer_pairs(self.layer_map, student.layers, teacher.layers)
        return hidden_matches(
            pairs, student, teacher, positions=self.positions, signal=self.signal, any_width=True
        )

    def learned(self, student: ModelSizes, teacher: ModelSizes) -> nn.Module:
        """Maps and variances of each pair of layers."""
        return nn.ModuleList(
            Regressor(student.width("hidden", ours), teacher.hidden)
            for ours, _ in layer_pairs(self.layer_map, student.layers, teacher.layers)
        )

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum or mean over the mapped layers of each layer's sum over rows."""
        regressors: Any = step.learned  # as `learned` made them
        found = [
            weighted(regressor(pair.student, pair.teacher.dense()), step.weight)
            for pair, regressor in zip(pairs, regressors, strict=True)
        ]
        return COMBINE[self.layers](torch.stack(found), step.state)


class Regressor(nn.Module):
    """A normal distribution of a teacher's row, given the student's.

    Args:
        student: width of its rows.
        teacher: width of its rows.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        widths = (student, teacher, teacher, teacher)
        self.maps = nn.ModuleList(
            nn.Linear(into, out, bias=False) for into, out in pairwise(widths)
        )
        start = torch.tensor(VARIANCE - LEAST).expm1().log()  # softplus of this is that variance
        self.scale = nn.Parameter(start.expand(teacher).clone())

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each row in nats, mean over the width, [N]."""
        found = student.to(self.scale.dtype)  # autocast's are smaller
        for place, linear in enumerate(self.maps):
            found = linear(found.relu() if place else found)
        variance = softplus(self.scale) + LEAST
        squares = (found.to(self.scale.dtype) - teacher.to(self.scale.dtype)).square()
        return (squares / variance + variance.log()).mean(1) / 2
