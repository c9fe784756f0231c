"""Mean and variance of hidden states over their width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, even, sides, weighted
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LayerMap, layer_pairs
from kdcache.losses.layer_matches import hidden_matches
from kdcache.signals import POSITIONS, ModelSizes
from kdcache.signals.positions import positions_of


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Difference of the mean, and of the variance, of each hidden state over its width.

    Of MobileBERT (Sun et al. 2020, arXiv:2004.02984), whose feature maps are compared after a layer
    norm: squared differences of means and absolute differences of biased variances, mean over rows
    and mapped layers. The published code compares every student layer with the statistics of all
    teacher layers, which its paper does not; here a layer learns from its own. Widths may differ.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        mean: factor of the means; the published code takes 5000 beside a feature-map loss of
            weight 100.
        variance: factor of the variances; the published code takes 5.
        layer_map: "skip", "last", "first", "uniform", or pairs such as "1:2,2:4".
        positions: "cls", "mean", "all", "selected", or "cache": what the cache holds.
        layers: how the mapped layers become one number: "mean", "sum", or another of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "moments"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    mean: float = 5000.0
    variance: float = 5.0
    layer_map: LayerMap = "uniform"
    positions: str = "cache"
    layers: str = "mean"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of a moments loss", self.weight)
        check_number("mean of moments", self.mean)
        check_number("variance of moments", self.variance)
        object.__setattr__(self, "positions", positions_of(self.positions))
        one_of("positions of moments", self.positions, ("cache", *POSITIONS))
        one_of("layers of moments", self.layers, COMBINE)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The mapped layers at the wanted positions, of any widths."""
        pairs = layer_pairs(self.layer_map, student.layers, teacher.layers)
        return hidden_matches(
            pairs, student, teacher, positions=self.positions, signal=self.signal, any_width=True
        )

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean or sum over the mapped layers of each layer's sum over rows."""
        found = []
        for pair in pairs:
            mean, variance = moment_losses(pair.student, pair.teacher.dense(), step.weight)
            found.append(self.mean * mean + self.variance * variance)
        return COMBINE[self.layers](torch.stack(found), step.state)


def moment_losses(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over rows of weight times the squared difference of means over the width, and times the
    absolute difference of biased variances.

    Args:
        student: [N, H].
        teacher: [N, width], of any width.
        weight: [N] floating; None: 1 / N, the mean over rows.

    Source: Sun et al. 2020, arXiv:2004.02984.
    """
    (mean, variance), (known_mean, known_variance) = map(_moments, sides(student, teacher))
    rows = even(mean) if weight is None else weight
    squares = (mean - known_mean).square()
    return weighted(squares, rows), weighted((variance - known_variance).abs(), rows)


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = x.mean(1)
    return mean, (x - mean[:, None]).square().mean(1)
