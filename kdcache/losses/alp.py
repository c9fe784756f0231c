"""Layers of the teacher, combined by attention: what each layer of a student learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, even, exact, weighted
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_matches import PROJECTIONS, learns
from kdcache.signals import ModelSizes, Tap

POSITIONS = ("cls", "mean")


@dataclass(frozen=True, kw_only=True)
class ALP:
    """Attention-based layer projection, ALP-KD (Passban et al. 2021, arXiv:2012.14022).

    A vector of a document at a layer of the student is drawn to a mean of the teacher's at its
    layers, each weighted by the softmax over layers of its product with the student's. The
    gradient goes through these weights too. Embedding outputs take no part.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        positions: the vectors: "cls", the first token's states, or "mean", those of all tokens.
        teacher_layers: layers of the teacher there are to choose from; none: all of its blocks.
        scaled: divide the products by the square root of the width. The paper does not; between
            BERT's [CLS] states the softmax is then close to choosing one layer.
        projection: "linear" learns a map from the student's width to the teacher's for each layer,
            "none" learns none, "auto" learns one where the widths differ. The paper has none.
        layers: "sum" or "mean" over the student's layers.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "alp"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    positions: str = "cls"
    teacher_layers: tuple[int, ...] = ()
    scaled: bool = False
    projection: str = "auto"
    layers: str = "sum"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of an alp loss", self.weight)
        one_of("positions of alp", self.positions, POSITIONS)
        one_of("projection of alp", self.projection, PROJECTIONS)
        one_of("layers of alp", self.layers, COMBINE)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Every layer of the student with each of the teacher's in turn."""
        layers = self.teacher_layers or tuple(range(1, teacher.layers + 1))
        outside = [layer for layer in layers if not 0 <= layer <= teacher.layers]
        if outside:
            raise ConfigError(
                f"teacher_layers of alp needs teacher layer {outside[0]}; the teacher has layers 0 "
                f"(embedding output) to {teacher.layers}"
            )
        learned = learns(self.projection, lambda: student.hidden != teacher.hidden)
        return tuple(
            Match(
                Tap("hidden", ours),
                Tap("hidden", theirs),
                positions=self.positions,
                signal=self.signal,
                project=str(ours) if learned else None,
            )
            for ours in range(1, student.layers + 1)
            for theirs in layers
        )

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum or mean over the student's layers of each layer's sum over documents."""
        known = sum(pair.student is pairs[0].student for pair in pairs)
        teacher = torch.stack([pair.teacher.dense() for pair in pairs[:known]], 1)
        found = [
            attended_loss(pair.student, teacher, scaled=self.scaled, weight=step.weight)
            for pair in pairs[::known]
        ]
        return COMBINE[self.layers](torch.stack(found), step.state)


def attended_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    scaled: bool = False,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over rows of weight times the mean over H of (student - attended)^2.

    Args:
        student: a layer, [N, H].
        teacher: [N, layers, H]. `attended` is its mean over layers, each times the softmax over
            layers of its product with the student's row.
        scaled: whether products are divided by the square root of H.
        weight: [N] floating; None: 1 / N, the mean over rows.

    Source: Passban et al. 2021, arXiv:2012.14022.
    """
    ours = exact(student)
    known = teacher.to(ours.dtype)
    attended = (layer_shares(ours, known, scaled=scaled)[..., None] * known).sum(1)
    rows = (ours - attended).square().mean(1)
    return weighted(rows, even(rows) if weight is None else weight)


def layer_shares(
    student: torch.Tensor, teacher: torch.Tensor, *, scaled: bool = False
) -> torch.Tensor:
    """What each layer of the teacher counts for a row of the student, [N, layers], 1 in all.

    Args:
        student, teacher, scaled: as of `attended_loss`, in one dtype.

    Source: Passban et al. 2021, arXiv:2012.14022.
    """
    products = (student[:, None] * teacher).sum(-1)
    if scaled:
        products = products / math.sqrt(student.shape[1])
    return products.softmax(1)
