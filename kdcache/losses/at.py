"""Attention transfer: which tokens of a document have large hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, sides, weighted
from kdcache.losses.by_document import ByDocument, by_document, token_matches
from kdcache.losses.combine import COMBINE
from kdcache.losses.feature_mse import PADS
from kdcache.losses.layer_maps import LayerMap
from kdcache.signals import ModelSizes


@dataclass(frozen=True, kw_only=True)
class AT:
    """Attention transfer (Zagoruyko and Komodakis 2017, arXiv:1612.03928), activation-based.

    Tokens take the place of pixels and the width that of channels: the mean square of a token's
    hidden state says how much the model attends to it. Over the tokens of a document, those that
    the cache holds and no pads, these numbers are scaled to unit length, on both sides, and
    compared by their squared differences. Widths may differ.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        layer_map: which layers, as in the loss `hidden`.
        layers: how the mapped layers become one number: "mean", "sum", or another of COMBINE.
        pads: "out" is the mean over tokens; "count" is that over padded positions, as code for
            images, which have no pads, takes it for a batch of documents.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "at"
    weight: float = 1.0
    layer_map: LayerMap = "uniform"
    layers: str = "sum"
    pads: str = "out"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of at", self.weight)
        one_of("layers of at", self.layers, COMBINE)
        one_of("pads of at", self.pads, PADS)

    @property
    def over(self) -> Over:
        """Tokens; with pads=count, the padded positions they stand for."""
        return "padded" if self.pads == "count" else "rows"

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """All tokens of the mapped layers, of any widths."""
        return token_matches(
            self.layer_map, student, teacher, signal=self.signal, any_width=True, whole=False
        )

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean or sum over the mapped layers of each layer's sum over tokens."""
        documents = by_document(step)
        found = [
            weighted(attention_rows(pair.student, pair.teacher.dense(), documents), step.weight)
            for pair in pairs
        ]
        return COMBINE[self.layers](torch.stack(found), step.state)


def attention_rows(
    student: torch.Tensor, teacher: torch.Tensor, documents: ByDocument
) -> torch.Tensor:
    """Squared difference of the two attention maps at every token, [N].

    `student` is [N, H], `teacher` [N, width]. Source: Zagoruyko and Komodakis 2017,
    arXiv:1612.03928.
    """
    maps = [documents.unit(rows.square().mean(1)) for rows in sides(student, teacher)]
    return (maps[0] - maps[1]).square()
