"""One class a document: its number among the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from kdcache.labels.base import (
    Array,
    Floats,
    LabelKind,
    Teaching,
    Told,
    output_names,
    probabilities,
)
from kdcache.labels.class_labels import read_classes
from kdcache.labels.metrics import classification, log_softmax
from kdcache.labels.summed import accuracy
from kdcache.manifest import Json
from kdcache.tasks import IGNORE_INDEX


def cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of logits [N, C] and class ids [N]: [N]."""
    return functional.cross_entropy(outputs, labels, ignore_index=IGNORE_INDEX, reduction="none")


def _scores(outputs: Floats, labels: Array, names: Sequence[str]) -> Json:
    return classification(outputs, labels)


def _predictions(outputs: Floats, labels: Array, names: Sequence[str]) -> Told:
    logprobs = log_softmax(outputs)
    named = output_names(names, outputs.shape[1])
    rows = (
        (named[label] if label >= 0 else None, named[row.argmax()], float(row.max()), *row.tolist())
        for label, row in zip(labels, np.exp(logprobs), strict=True)
    )
    return Told(("label", "prediction", "confidence", *probabilities(named)), rows)


CLASSES = LabelKind(
    name="classes",
    label_type="class",
    called="classifier",
    problem_type="single_label_classification",
    means=lambda problem_type, outputs: (
        outputs > 1 and problem_type in (None, "single_label_classification")
    ),
    column="label",
    dtype="int32",
    numbered=True,
    guess=lambda reader: not reader.several,
    read=read_classes,
    hard_rows=cross_entropy,
    scores=_scores,
    metric=lambda labels: "accuracy",
    summed=accuracy,
    headline="accuracy",
    predictions=_predictions,
    teaching=Teaching(by="accuracy", strata=lambda labels: labels.astype(np.int64)),
)
