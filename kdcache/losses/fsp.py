"""Flow between layers: the products of the hidden states of one layer with those of the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch.utils.checkpoint import checkpoint

from kdcache.errors import ConfigError, one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, exact, weighted
from kdcache.losses.between_documents import products
from kdcache.losses.by_document import ByDocument, by_document, token_matches
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LayerMap
from kdcache.losses.layer_matches import PROJECTIONS
from kdcache.signals import ModelSizes


@dataclass(frozen=True, kw_only=True)
class FSP:
    """Flow of solution procedure (Yim et al. 2017, CVPR, "A Gift from Knowledge Distillation").

    Tokens take the place of pixels and the width that of channels. Of every two neighbouring layers
    of the map, the products of each column of the lower with each of the upper, over the tokens of
    a document and divided by their number, pads left out: [H, H] a document. The squared difference
    between student and teacher, mean over these and over documents.

    The matrices of one pair of layers are there at a time, forward and backward: 4 B H^2 bytes a
    side for B documents.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. RepDistiller takes 50.
        layer_map: which layers, two at least, as in the loss `hidden`; neighbours are those that
            follow each other in it.
        projection: "linear" learns a map from the student's width to the teacher's for each layer,
            "none" learns none, "auto" learns one where the widths differ. The paper has none.
        layers: how the pairs of layers become one number: "sum", "mean", or another of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "fsp"
    over: ClassVar[Over] = "documents"
    weight: float = 1.0
    layer_map: LayerMap = "uniform"
    projection: str = "auto"
    layers: str = "sum"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of fsp", self.weight)
        one_of("projection of fsp", self.projection, PROJECTIONS)
        one_of("layers of fsp", self.layers, COMBINE)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """All tokens of the mapped layers, and a map where it is learned."""
        found = token_matches(
            self.layer_map, student, teacher, signal=self.signal, projection=self.projection
        )
        if len(found) < 2:
            raise ConfigError(
                f"fsp holds two neighbouring layers against two of the teacher; layer map "
                f"{self.layer_map!r} has one pair: give it two, such as "
                f"'0:0,{student.layers}:{teacher.layers}'"
            )
        return found

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum or mean over neighbouring layers of each one's sum over documents."""
        documents = by_document(step)
        found = [
            weighted(flow(lower, upper, documents), step.weight) for lower, upper in pairwise(pairs)
        ]
        return COMBINE[self.layers](torch.stack(found), step.state)


def flow(lower: Pair, upper: Pair, documents: ByDocument) -> torch.Tensor:
    """Mean squared difference of the flow between two layers, of each document, [B].

    Pairs have the tokens of all documents, [N, H], on both sides; the widths of the layers may
    differ. Source: Yim et al. 2017.
    """
    ours = [exact(pair.student) for pair in (lower, upper)]
    theirs = [pair.teacher.dense().to(ours[0].dtype) for pair in (lower, upper)]
    every = [documents.padded(rows).transpose(1, 2) for rows in (*ours, *theirs)]
    apart: torch.Tensor = checkpoint(_apart, *every, use_reentrant=False, preserve_rng_state=False)
    return apart / documents.lengths.to(apart.dtype).square()


def _apart(*sides: torch.Tensor) -> torch.Tensor:
    lower, upper, known_lower, known_upper = sides  # [B, H, longest] each
    apart = products(lower, upper) - products(known_lower, known_upper)
    return apart.square().mean((1, 2))
