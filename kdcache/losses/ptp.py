"""How sure a teacher is of its class, and whether it is right: what a student learns first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kdcache.errors import ConfigError
from kdcache.losses.base import LABELS, Match, Over, Pair, Step, check_number, exact, weighted
from kdcache.signals import LOGITS, ModelSizes, SoftLabels, SoftUse, Tap
from kdcache.tasks import IGNORE_INDEX

KINDS = 4  # of predictions: right or wrong, each sure or not


@dataclass(frozen=True, kw_only=True)
class PTP:
    """Pretraining with the teacher's predictions, of Pea-KD (Cho and Kang 2022, arXiv:2009.14822).

    The student tells of each labelled document which of four predictions the teacher made: right
    and sure, right and unsure, wrong and sure, wrong and unsure. It tells by a linear layer on what
    its classifier reads, which is learned with it and thrown away.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        right: probability of its class above which a teacher that is right is sure. The paper's
            code has .98 for SST-2 and QNLI, .95 for MRPC and CoLA, .8 for RTE.
        wrong: the same of a teacher that is wrong: .8, .7, .75, .7 and .6.
        dropout: in front of the layer, as BERT has it in front of a classifier.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "ptp"
    over: ClassVar[Over] = "labelled"
    weight: float = 1.0
    right: float = 0.95
    wrong: float = 0.75
    dropout: float = 0.0
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of a ptp loss", self.weight)
        for name in ("right", "wrong", "dropout"):
            number = getattr(self, name)
            if not 0 <= number < 1:
                raise ConfigError(f"{name} of ptp must be 0 or more and below 1; got {number}")

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """What a classifier reads against the teacher's classes, and the labels beside them."""
        use = SoftUse(temperature=1.0, tail="truncate")
        return (
            Match(Tap("pooled"), LOGITS, signal=self.signal, use=use),
            Match(LOGITS, LABELS),
        )

    def learned(self, student: ModelSizes, teacher: ModelSizes) -> nn.Module:
        """The layer that tells the kinds of predictions apart."""
        return nn.Sequential(nn.Dropout(self.dropout), nn.Linear(student.width("pooled"), KINDS))

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum over labelled documents of the cross-entropy to the kind of prediction."""
        (pooled, soft, _), (_, labels, _) = pairs
        layer = step.learned
        assert layer is not None, "the objective has made it"
        dtype = next(layer.parameters()).dtype
        kinds = predictions(soft, labels, right=self.right, wrong=self.wrong)
        nats = cross_entropy(
            exact(layer(pooled.to(dtype))), kinds, reduction="none", ignore_index=IGNORE_INDEX
        )
        return weighted(nats, step.weight)


def predictions(
    soft: SoftLabels, labels: torch.Tensor, *, right: float, wrong: float
) -> torch.Tensor:
    """Kind of each of the teacher's predictions, [N] int64; IGNORE_INDEX without a label.

    0: right, its class likelier than `right`; 1: right, and not; 2: wrong, its class likelier than
    `wrong`; 3: wrong, and not.

    Args:
        soft: the teacher's probabilities of N documents.
        labels: class ids [N], IGNORE_INDEX where there is none.

    Source: Cho and Kang 2022, arXiv:2009.14822, and its code, which has two thresholds.
    """
    logprob, place = soft.logprobs.max(1)
    probability = logprob.exp()
    correct = soft.ids.gather(1, place[:, None]).squeeze(1) == labels
    kinds = torch.where(correct, (probability <= right).long(), 2 + (probability <= wrong).long())
    return kinds.masked_fill(labels == IGNORE_INDEX, IGNORE_INDEX)
