"""Neuron selectivity: which tokens of a document each column of the hidden states answers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, sides, weighted
from kdcache.losses.between_documents import products
from kdcache.losses.by_document import ByDocument, by_document, token_matches
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LayerMap
from kdcache.signals import ModelSizes


@dataclass(frozen=True, kw_only=True)
class NST:
    """Neuron selectivity transfer (Huang and Wang 2017, arXiv:1707.01219), squared products.

    Tokens take the place of pixels and the width that of channels. Every column of a document's
    hidden states is scaled to unit length over its tokens, pads left out; the maximum mean
    discrepancy between the columns of student and teacher, with the kernel (x y)^2, mean over
    documents. Widths may differ.

    With K the products of a document's tokens over the width, [tokens, tokens], that discrepancy is
    the sum of (K of the student - K of the teacher)^2, exactly: the products of all columns, as
    many as the width squared, are never made.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. RepDistiller takes 50.
        layer_map: which layers, as in the loss `hidden`.
        layers: how the mapped layers become one number: "mean", "sum", or another of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "nst"
    over: ClassVar[Over] = "documents"
    weight: float = 1.0
    layer_map: LayerMap = "uniform"
    layers: str = "sum"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of nst", self.weight)
        one_of("layers of nst", self.layers, COMBINE)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """All tokens of the mapped layers, of any widths."""
        return token_matches(self.layer_map, student, teacher, signal=self.signal, any_width=True)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean or sum over the mapped layers of each layer's sum over documents."""
        documents = by_document(step)
        found = [
            weighted(selectivity(pair.student, pair.teacher.dense(), documents), step.weight)
            for pair in pairs
        ]
        return COMBINE[self.layers](torch.stack(found), step.state)


def selectivity(
    student: torch.Tensor, teacher: torch.Tensor, documents: ByDocument
) -> torch.Tensor:
    """The discrepancy of each document, [B]; `student` is [N, H], `teacher` [N, width].

    Source: Huang and Wang 2017, arXiv:1707.01219.
    """
    ours, theirs = (
        products(documents.padded(documents.unit(rows))) / rows.shape[1]
        for rows in sides(student, teacher)
    )
    return (ours - theirs).square().sum((1, 2))
