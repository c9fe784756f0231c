"""Hidden states: squared error of student layers from cached teacher layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LAYER_MAPS, LayerMap, explicit_pairs, layer_pairs
from kdcache.losses.layer_matches import PROJECTIONS, hidden_matches
from kdcache.signals import POSITIONS, LayerRows, ModelSizes
from kdcache.signals.positions import positions_of
from kdcache_kernels import hidden_mse

NORMALIZE = ("none", "l2", "layernorm")
PADS = ("out", "count")


@dataclass(frozen=True, kw_only=True)
class HiddenMSE:
    """Mean squared error between hidden states, over rows, width and mapped layers.

    | paper                                | map        | positions | normalize | layers | pads  |
    |--------------------------------------|------------|-----------|-----------|--------|-------|
    | PKD, 1908.09355 (its code)           | skip, last | cls       | l2        | mean   |       |
    | TinyBERT, 1909.10351 (its code)      | uniform    | all       | none      | sum    | count |
    | MobileBERT, 2004.02984               | explicit   | all       | layernorm | mean   | out   |
    | DistilBERT, 1910.01108: last, cosine | explicit   | all       | l2        | mean   | out   |

    For rows of width H, the cosine loss 1 - cos of DistilBERT is H / 2 times this loss under l2.
    TinyBERT lets pads count; a cache holds none, so `pads = "count"` divides by the number of
    padded positions while pads themselves add nothing.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. PKD takes 10 to 1000.
        layer_map: "skip", "last", "first", "uniform", "middle", "top", or pairs of a student and a
            teacher layer such as "1:2,2:4".
        positions: "cls", "mean", "all", "selected", or "cache": what the cache holds.
        normalize: of each row, on both sides: "none", "l2" or "layernorm".
        projection: "linear" learns a map from the student's width to the teacher's, "none" learns
            none, "auto" learns one where the widths differ. It is thrown away after training.
        shared_projection: one map for all layers, as TinyBERT, rather than one for each.
        layers: how the mapped layers become one number: "mean", "sum", or another of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
        pads: with positions=all, "out" is the mean over tokens, "count" over padded positions.
    """

    kind: ClassVar[str] = "hidden"
    weight: float = 1.0
    layer_map: LayerMap = "uniform"
    positions: str = "cache"
    normalize: str = "none"
    projection: str = "auto"
    shared_projection: bool = False
    layers: str = "mean"
    pads: str = "out"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of a hidden loss", self.weight)
        if isinstance(self.layer_map, str) and ":" not in self.layer_map:
            one_of("layer map", self.layer_map, LAYER_MAPS)
        else:
            explicit_pairs(self.layer_map)
        object.__setattr__(self, "positions", positions_of(self.positions))
        for name, options in (
            ("positions", ("cache", *POSITIONS)),
            ("normalize", NORMALIZE),
            ("projection", PROJECTIONS),
            ("layers", COMBINE),
            ("pads", PADS),
        ):
            one_of(f"{name} of hidden", getattr(self, name), options)
        if self.pads == "count" and self.positions != "all":
            raise ConfigError(f"pads=count is for positions=all; got positions={self.positions}")

    @property
    def over(self) -> Over:
        """Rows compared in a layer; with pads=count, the padded positions they stand for."""
        return "padded" if self.pads == "count" else "rows"

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The mapped layers at the wanted positions, and a projection where widths differ."""
        pairs = layer_pairs(self.layer_map, student.layers, teacher.layers)
        return hidden_matches(
            pairs,
            student,
            teacher,
            positions=self.positions,
            signal=self.signal,
            projection=self.projection,
            shared=self.shared_projection,
        )

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean or sum over the mapped layers of each layer's sum over rows."""
        found = [
            hidden_loss(p.student, p.teacher, normalize=self.normalize, weight=step.weight)
            for p in pairs
        ]
        return COMBINE[self.layers](torch.stack(found), step.state)


def hidden_loss(
    student: torch.Tensor,
    teacher: LayerRows,
    *,
    normalize: str = "none",
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over rows of weight times the mean over H of the squared differences.

    `student` is [N, H]; `teacher` holds N rows of the same width; `weight` is [N], None: 1 / N, the
    mean over rows. Zero if N is 0.
    """
    return hidden_mse(
        student,
        teacher.codes,
        teacher.scale,
        normalize=cast(Literal["none", "l2", "layernorm"], normalize),
        weight=weight,
    )
