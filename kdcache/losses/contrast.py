"""Supervised contrast: documents of one class lie together, in the student and the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from kdcache.errors import one_of
from kdcache.labels import known_rows
from kdcache.losses.base import LABELS, Match, Over, Pair, Step, check_number, safe, sides
from kdcache.losses.between_documents import check_vectors, products, shares, vector_matches
from kdcache.losses.layer_maps import LayerMap
from kdcache.losses.layer_matches import PROJECTIONS
from kdcache.signals import LOGITS, ModelSizes

ANCHORS = ("both", "student")
EPSILON = 1e-7


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362) over student and teacher.

    The vectors of a batch's documents, the student's and the teacher's, at unit length; of each
    anchor, the mean over those of its class, itself left out, of the negative log of the softmax of
    cosines over the temperature. A document without a label is a class by itself; so is one whose
    label no other of the batch has, and its teacher's vector is then all there is of its class.

    In MLKD-BERT (Zhang et al. 2024, arXiv:2407.02775), by the code of HandH1998/tmp_bert_mlkd:
    anchors of both, later of the student alone and the loss times the temperature.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. That code takes 0.1.
        temperature: divides cosines.
        anchors: "both" sides' vectors, or the "student"'s alone.
        vectors: of each document: "cls", its first token's hidden state, "mean", that of all its
            tokens, or "pooled", what a classifier reads.
        layer_map: which layers' hidden states; "": the last of both. With several the mean over
            them.
        projection: "linear" learns a map from the student's width to the teacher's for each layer,
            "none" learns none, "auto" learns one where the widths differ.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "contrast"
    over: ClassVar[Over] = "batch"
    weight: float = 1.0
    temperature: float = 0.07
    anchors: str = "both"
    vectors: str = "cls"
    layer_map: LayerMap = ""
    projection: str = "auto"
    signal: str = ""

    def __post_init__(self) -> None:
        check_vectors(self)
        check_number("temperature of contrast", self.temperature, positive=True)
        one_of("anchors of contrast", self.anchors, ANCHORS)
        one_of("projection of contrast", self.projection, PROJECTIONS)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The vectors of documents, a map where it is learned, and labels."""
        vectors = vector_matches(self, student, teacher, projection=self.projection)
        return (*vectors, Match(LOGITS, LABELS))

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean over the mapped layers of the batch's share of the step times its contrast."""
        *vectors, labels = pairs
        found = [
            contrast_loss(
                pair.student,
                pair.teacher.dense(),
                labels.teacher,
                temperature=self.temperature,
                anchors=self.anchors,
                weight=step.weight,
            )
            for pair in vectors
        ]
        return torch.stack(found).mean()


def contrast_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float,
    anchors: str = "both",
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over anchors of the contrast of each, in nats.

    Args:
        student: [B, H].
        teacher: [B, H].
        labels: class ids [B] int64; IGNORE_INDEX where there is none.
        anchors: "both" or "student".
        weight: [B] floating, what each document counts for, among an anchor's others too; None:
            1 / B.

    Source: Khosla et al. 2020, arXiv:2004.11362.
    """
    ours, theirs = (normalize(side, dim=1) for side in sides(student, teacher))
    of = shares(ours, weight)
    every = torch.cat([ours, theirs])
    cosines = products(every) / temperature
    cosines = cosines - cosines.detach().amax(1, keepdim=True)
    itself = torch.eye(len(every), dtype=torch.bool, device=every.device)
    counts = (of.number * of.share).repeat(2) * ~itself
    logs = cosines - ((cosines.exp() * counts).sum(1, keepdim=True) + EPSILON).log()
    alike = _alike(labels).repeat(2, 2) * counts
    number = alike.sum(1)
    rows = -(alike * logs).sum(1) / safe(number)
    if anchors == "student":
        return of.total * (rows[: len(ours)] * of.share).sum()
    return of.total * (rows * of.share.repeat(2)).sum() / 2


def _alike(labels: torch.Tensor) -> torch.Tensor:
    """Whether two documents are of one class, [B, B] bool; each is with itself."""
    known = known_rows(labels)
    same = (labels[:, None] == labels) & known[:, None] & known
    return same | torch.eye(len(labels), dtype=torch.bool, device=labels.device)
