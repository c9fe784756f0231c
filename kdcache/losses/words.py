"""Words: hidden states of two models that cut texts into tokens of different vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, means_of, sides, weighted
from kdcache.losses.by_document import token_matches
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LayerMap
from kdcache.losses.layer_matches import PROJECTIONS
from kdcache.plans.batch import STUDENT_WORDS, TEACHER_WORDS, WORD_DOCS
from kdcache.signals import ModelSizes


@dataclass(frozen=True, kw_only=True)
class Words:
    """Mean squared error between what words are to both models, whatever tokens these make of them.

    A word is the mean of the hidden states of its tokens, on either side of those that the model
    reads. Its value is the mean of squares over the width, a document's the mean over the words
    that both have, and the loss the mean over documents: a long one counts like a short one.

    Source: an offline counterpart of Zhao et al. 2021 (arXiv:1909.11687), who let the teacher read
    words in both vocabularies while it is trained, so that their embeddings come to agree.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        layer_map: as in the loss `hidden`; layer 0 is the embedding output.
        projection: "linear" learns a map from each layer's width to the teacher's, "none" learns
            none, "auto" learns one where the widths differ. It is thrown away after training.
        layers: how the mapped layers become one number: a name of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "words"
    over: ClassVar[Over] = "documents"
    by_words: ClassVar[bool] = True
    weight: float = 1.0
    layer_map: LayerMap = "uniform"
    projection: str = "auto"
    layers: str = "sum"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of words", self.weight)
        one_of("projection of words", self.projection, PROJECTIONS)
        one_of("layers of words", self.layers, COMBINE)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """All tokens of the mapped layers, of as many rows on either side as that model reads."""
        return token_matches(
            self.layer_map, student, teacher, signal=self.signal, projection=self.projection
        )

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean or sum over the mapped layers of each layer's sum over documents."""
        batch, found = step.batch, []
        docs = batch[WORD_DOCS]
        for pair in pairs:
            ours, theirs = sides(pair.student, pair.teacher.dense())
            one = means_of(ours, batch[STUDENT_WORDS], len(docs))
            other = means_of(theirs, batch[TEACHER_WORDS], len(docs))
            of_words = (one - other).square().mean(1)
            of_docs = means_of(of_words.unsqueeze(1), docs, len(batch["docs"])).squeeze(1)
            found.append(weighted(of_docs, step.weight))
        return COMBINE[self.layers](torch.stack(found), step.state)
