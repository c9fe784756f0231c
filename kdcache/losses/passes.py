"""Which losses one pass over a student's logits serves together, and which need no logits made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch

from kdcache.losses.base import LABELS, Match, Pair, Step
from kdcache.losses.bound import Bound, BoundLoss
from kdcache.losses.cross_entropy import Hard
from kdcache.losses.kl import SoftKL, soft_and_hard

Values = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
"""Weighted sum of the losses of a pass, which carries the gradient, and each before its weight."""
Run = Callable[[Sequence[Any], Sequence[Sequence[Pair]], Sequence[Step]], Values]

THROUGH_HEAD = (SoftKL.kind, Hard.kind)
"""Losses that take the head of a language model in the place of the logits it would make."""


class Pass(NamedTuple):
    """Losses that are worked out together: of each, its pairs and its step go in.

    Attributes:
        run: what works them out; None: there is one, which its own value is.
    """

    losses: tuple[BoundLoss, ...]
    run: Run | None = None


def _soft_and_hard(
    losses: Sequence[Any], pairs: Sequence[Sequence[Pair]], steps: Sequence[Step]
) -> Values:
    """Both are of the same rows: hard labels take the soft ones' weights, times what these lack."""
    soft: SoftKL = losses[0]
    hard: Hard = losses[1]
    (pair,), (labels,) = pairs
    more = steps[0].total / steps[1].total if steps[1].total else 0.0
    total, *parts = soft_and_hard(
        pair.student,
        pair.teacher,
        wider=pair.wider,
        temperature=soft.temperature,
        tail=soft.tail,
        reduction=soft.reduction,
        t_squared=soft.t_squared,
        weight=soft.weight,
        labels=labels.teacher,
        hard_weight=hard.weight,
        row_weight=steps[0].weight,
        hard_factor=more,
    )
    return total, tuple(parts)


FUSED: dict[tuple[str, str], Run] = {(SoftKL.kind, Hard.kind): _soft_and_hard}
"""Pairs of losses that one pass serves where both read one tap of the student at the same rows, and
the teacher's outputs are those of a softmax.
"""


def passes(losses: Mapping[str, BoundLoss]) -> list[Pass]:
    """Every loss once: those that can be fused in pairs, then the others, in their order."""
    left, found = dict(losses), []
    alone = [one for one in losses.values() if not one.choose]  # several teachers are a loss each
    for first, second in product(alone, repeat=2):
        run = FUSED.get((first.loss.kind, second.loss.kind))
        there = {first.name, second.name} <= left.keys()
        if run and there and _same_rows(first, second) and _of_softmax(first):
            found.append(Pass((left.pop(first.name), left.pop(second.name)), run))
    return found + [Pass((loss,)) for loss in left.values()]


def _same_rows(first: BoundLoss, second: BoundLoss) -> bool:
    """Whether two losses read one value of the student at the same rows."""
    matches = first.matches + second.matches
    places = {(m.student, m.outputs, m.rows._replace(labelled=False)) for m in matches}
    return len(places) == 1 and first.at == second.at


def _of_softmax(loss: BoundLoss) -> bool:
    """Whether what it reads of the teacher are outputs of a softmax, or none."""
    signals = [match.held for match in loss.matches if match.signal]
    return all(getattr(signal, "activation", "softmax") == "softmax" for signal in signals)


def makes_logits(losses: Mapping[str, BoundLoss]) -> bool:
    """Whether a loss reads the logits themselves, which a head alone does not serve."""
    return any(
        match.student.name == "logits" and bound.loss.kind not in THROUGH_HEAD
        for bound in losses.values()
        for match in bound.matches
    )


def labels_only(matches: Sequence[Match | Bound]) -> bool:
    """Whether a loss of these matches learns from the corpus's labels alone."""
    return bool(matches) and all(match.teacher == LABELS for match in matches)
