"""Several classes a document, or none: multi-label classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import special
from torch.nn import functional

from kdcache.labels.base import (
    Array,
    Bools,
    Floats,
    LabelKind,
    Teaching,
    Told,
    known,
    known_rows,
    output_names,
    probabilities,
)
from kdcache.labels.several import has_values, read_sets
from kdcache.labels.several_metrics import several_classes
from kdcache.labels.summed import micro_f1
from kdcache.manifest import Json
from kdcache.tasks import IGNORE_INDEX


def binary_cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of logits [N, C] and labels [N, C] of 0 and 1, all classes: [N]."""
    target = labels.clamp(min=0).to(outputs.dtype)
    rows = functional.binary_cross_entropy_with_logits(outputs, target, reduction="none").sum(-1)
    return torch.where(known_rows(labels), rows, 0.0)


def bernoulli_kl(
    outputs: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher || student) in nats of the sigmoids of two logits [N, C], all classes: [N].

    Both are divided by the temperature T; T^2 is not in it. The classes of a document are taken as
    independent: their divergences add up to that of their joint distribution.

    Source: Hinton et al. 2015, arXiv:1503.02531, class by class as in Yang et al. 2023,
    arXiv:2308.06453.
    """
    student, teacher = outputs / temperature, teacher.to(outputs.dtype) / temperature
    chance = teacher.sigmoid()
    there = functional.logsigmoid(teacher) - functional.logsigmoid(student)
    absent = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
    return (chance * there + (1 - chance) * absent).sum(-1)


def _compare(mine: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    same = ((mine > 0) == (theirs > 0)).all(-1)
    return same, bernoulli_kl(mine.double(), theirs.double())


def _predictions(outputs: Floats, labels: Array, names: Sequence[str]) -> Told:
    """Names as lists, whatever is in them, and the probability of every class."""
    named = output_names(names, outputs.shape[1])
    chances = special.expit(outputs.astype(np.float64))
    there = known(labels)
    rows = (
        (
            _listed(named, label == 1) if labelled else None,
            _listed(named, output > 0),
            *row.tolist(),
        )
        for label, labelled, output, row in zip(labels, there, outputs, chances, strict=True)
    )
    return Told(("labels", "prediction", *probabilities(named)), rows)


def _listed(names: Sequence[str], there: Bools) -> list[str]:
    return [name for name, one in zip(names, there, strict=True) if one]


def _sound(labels: Array) -> Bools:
    given: Bools = ((labels == 0) | (labels == 1)).all(1)
    unlabelled: Bools = (labels == IGNORE_INDEX).all(1)
    return np.asarray(given | unlabelled)


def _metric(labels: Array) -> str:
    """The mean average precision asks for no threshold; without a class to find there is none."""
    return "average_precision" if (labels == 1).any() else "cross_entropy"


def _strata(labels: Array) -> Array:
    """Of each document the rarest of its classes, one beyond all where it has none: [N]."""
    there = labels == 1
    counts = np.where(there, there.sum(0)[None, :], len(labels) + 1)
    rows: Array = np.where(there.any(1), counts.argmin(1), labels.shape[1]).astype(np.int64)
    return rows


def _fit(read: Floats, labels: Array, bias: bool) -> tuple[Floats, Floats]:
    """A logistic regression for each class; of a class that all or none have, its odds alone."""
    from sklearn.linear_model import LogisticRegression

    weight, offset = np.zeros((labels.shape[1], read.shape[1])), np.zeros(labels.shape[1])
    for index, column in enumerate(labels.T):
        if len(np.unique(column)) < 2:
            offset[index] = special.logit((column.sum() + 0.5) / (len(column) + 1))
            continue
        fitted = LogisticRegression(max_iter=500, fit_intercept=bias).fit(read, column)
        weight[index], offset[index] = fitted.coef_[0], np.ravel(fitted.intercept_)[0]
    return weight, offset


def _scores(outputs: Floats, labels: Array, names: Sequence[str]) -> Json:
    return several_classes(outputs, labels, output_names(names, outputs.shape[1]))


MULTI_LABEL = LabelKind(
    name="multi-label",
    label_type="multi-label",
    called="classifier of several classes a document",
    problem_type="multi_label_classification",
    means=lambda problem_type, outputs: problem_type == "multi_label_classification",
    column="labels",
    dtype="int8",
    wide=True,
    activation="sigmoid",
    guess=lambda reader: reader.several and not has_values(reader),
    read=read_sets,
    sound=_sound,
    hard_rows=binary_cross_entropy,
    divergence=bernoulli_kl,
    compare=_compare,
    scores=_scores,
    metric=_metric,
    summed=micro_f1,
    headline="micro_f1",
    predictions=_predictions,
    teaching=Teaching(strata=_strata, fit=_fit, by="average_precision"),
)
