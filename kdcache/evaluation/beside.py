"""Teacher and student beside each other: who of the two is right, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdcache.evaluation.cuts import bands
from kdcache.labels.base import Array, output_names
from kdcache.labels.classes import CLASSES
from kdcache.labels.multi_label import MULTI_LABEL, bernoulli_kl
from kdcache.manifest import Json
from kdcache.signals import SoftLabels
from kdcache.signals.soft_labels import TeacherOutputs
from kdcache_kernels import topk_kl_rows


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Teacher and student on the same N labelled rows.

    Attributes:
        same: [N] bool, whether both say the same.
        teacher: [N] bool, whether the teacher is right.
        student: [N] bool, whether the student is.
        divergence: [N], KL(teacher || student) in nats.
    """

    same: torch.Tensor
    teacher: torch.Tensor
    student: torch.Tensor
    divergence: torch.Tensor

    def shares(self, rows: torch.Tensor | None = None) -> Json:
        """Of all rows, or of those where `rows`, [N] bool, is set: how many, in which share of them
        both say the same, and who is right, and the mean divergence. None where there is no row.
        """
        chosen = torch.ones_like(self.same) if rows is None else rows
        teacher, student = self.teacher[chosen], self.student[chosen]
        found = {
            "agreement": self.same[chosen],
            "both_right": teacher & student,
            "lost": teacher & ~student,
            "gained": student & ~teacher,
            "both_wrong": ~teacher & ~student,
            "divergence": self.divergence[chosen],
        }
        count = len(teacher)
        means = {k: float(v.double().mean()) if count else None for k, v in found.items()}
        return {"documents": count, **means}


def of_one_class(student: torch.Tensor, teacher: SoftLabels, labels: torch.Tensor) -> Beside:
    """Both sides of documents of one class each.

    `student` are logits [N, C], `labels` class ids [N]. Of what the cache left out of the teacher's
    probabilities, all is one outcome.
    """
    told, guess = likeliest(teacher), student.argmax(-1)
    return Beside(
        same=told == guess,
        teacher=told == labels,
        student=guess == labels,
        divergence=divergence(student, teacher),
    )


def of_several_classes(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor
) -> Beside:
    """Both sides of documents of several classes, right where all of them are.

    `student` and `teacher` are logits [N, C] of one sigmoid each, `labels` [N, C] of 0 and 1.
    """
    told, guess, wanted = teacher > 0, student > 0, labels > 0
    return Beside(
        same=(told == guess).all(-1),
        teacher=(told == wanted).all(-1),
        student=(guess == wanted).all(-1),
        divergence=bernoulli_kl(student, teacher),
    )


def divergence(logits: torch.Tensor, soft: SoftLabels) -> torch.Tensor:
    """KL(teacher || model) of each row, in nats; what the cache left out is one outcome."""
    rows = topk_kl_rows(logits, soft.ids, soft.logprobs, tail_logmass=soft.tail_logmass)
    return rows[1]


def likeliest(soft: SoftLabels) -> torch.Tensor:
    """The class that the teacher finds likeliest, [N]."""
    return soft.ids.gather(1, soft.logprobs.argmax(-1, keepdim=True)).squeeze(1)


def confusion(student: torch.Tensor, teacher: SoftLabels) -> torch.Tensor:
    """How many of N documents teacher (rows) and student (columns) take for which class: [C, C]."""
    classes = student.shape[1]
    pairs = likeliest(teacher) * classes + student.argmax(-1)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


Sides = Callable[[torch.Tensor, Any, torch.Tensor, Sequence[str]], tuple[Beside, Json]]


def _of_classes(
    student: torch.Tensor, teacher: SoftLabels, labels: torch.Tensor, names: Sequence[str]
) -> tuple[Beside, Json]:
    """A row for each class: of the documents that people gave it."""
    found = of_one_class(student, teacher, labels)
    named = output_names(names, student.shape[1])
    rows = [{"class": name, **found.shares(labels == i)} for i, name in enumerate(named)]
    return found, {"classes": rows, "confusion": confusion(student, teacher).tolist()}


def _of_sets(
    student: torch.Tensor, teacher: TeacherOutputs, labels: torch.Tensor, names: Sequence[str]
) -> tuple[Beside, Json]:
    """A row for each class: of all documents, whether they have it."""
    theirs = teacher.values.to(student.dtype)
    rows = []
    for i, name in enumerate(output_names(names, student.shape[1])):
        one = slice(i, i + 1)
        sides = of_several_classes(student[:, one], theirs[:, one], labels[:, one])
        rows.append({"class": name, **sides.shares(), "having_it": int((labels[:, i] > 0).sum())})
    return of_several_classes(student, theirs, labels), {"classes": rows}


SIDES: dict[str, Sides] = {CLASSES.name: _of_classes, MULTI_LABEL.name: _of_sets}
"""By the kind of labels, what puts logits of a student [N, C] beside what the teacher says and the
labels of all N: both sides, and the report's rows of classes. Other kinds know no right and wrong.
"""


def by_length(found: Beside, tokens: Array, bins: int) -> list[Json]:
    """The shares of documents of about the same length: a row for each quantile of `tokens` [N].

    Documents of one length are in one row, so there may be fewer rows than `bins`.
    """
    places = bands(tokens, bins)
    rows = []
    for place in np.unique(places):
        held = tokens[places == place]
        between = [int(held.min()), int(held.max())]
        rows.append({"tokens": between, **found.shares(torch.from_numpy(places == place))})
    return rows
