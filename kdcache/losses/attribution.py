"""What a classifier's answer owes to each token: attributions by the gradient at its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, sides, weighted
from kdcache.signals import Attributing, ModelSizes, Tap
from kdcache.signals.attributing import VIEWS


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Squared difference of the attributions of tokens (AD-KD, Wu et al. 2023, arXiv:2305.10010).

    Both sides are attributions, not probabilities: values of length 1 over the tokens of each
    document, one a view (see `kdcache.Tap`). The value is the mean over tokens of the squared
    differences, added up over views. The paper's code divides by the number of tokens that the
    teacher attributes anything to: by those with any, which are all but where a gradient is 0.

    A document without an attribution on one side moves nothing: the other's squares add up to 1.

    The student's are made of gradients that have a gradient in turn. It attends by torch's own
    operations meanwhile, and takes several forwards' time more; its dropout is on, as in the paper.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        views: "all" is one a class, "one" that of the document's label; "auto" is as in the paper:
            "one" of two classes, whose attributions are the same, else "all".
        ig_steps: points of integrated gradients, of both sides; a student takes as many forwards.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "attribution"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    views: str = "auto"
    ig_steps: int = 1
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of an attribution loss", self.weight)
        one_of("views of attribution", self.views, ("auto", *VIEWS))
        _ = Attributing(ig_steps=self.ig_steps)  # which checks it

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The attributions of all tokens; ConfigError for a student without embeddings."""
        few = "one" if teacher.outputs <= 2 else "all"
        views = few if self.views == "auto" else self.views
        tap = Tap("attribution", how=Attributing(views=views, ig_steps=self.ig_steps))
        student.width(tap.name)
        return (Match(tap, tap, positions="all", signal=self.signal),)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum over tokens of the squared differences of all views."""
        (pair,) = pairs
        ours, theirs = sides(pair.student, pair.teacher.dense())
        return weighted((ours - theirs).square().sum(1), step.weight)
