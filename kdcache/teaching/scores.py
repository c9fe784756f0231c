"""Scores of a model under way, and which of two is the better."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.evaluation.scoring import BATCH, token_budget
from kdcache.evaluation.scoring import predict as outputs_of
from kdcache.labels.metrics import classification, regression
from kdcache.manifest import Json
from kdcache.models.run import untouched
from kdcache.plans import Array, Docs
from kdcache.plans.batch import length_batches
from kdcache.teaching.data import Documents

Floats = npt.NDArray[np.floating[Any]]
RESAMPLES = 2000
WORST = (-math.inf, -math.inf)


def predict(model: Any, documents: Documents) -> Floats:
    """Outputs of a model for documents, [N, C] float32."""
    with untouched(model):
        return outputs_of(model, documents.plan, batches_of(documents)).logits


def batches_of(documents: Documents) -> Iterator[Docs]:
    """Documents in batches for a forward that is not trained on."""
    budget = token_budget(documents.plan, BATCH)
    return length_batches(documents.plan, documents.docs, budget)


def score(outputs: Floats, documents: Documents) -> Json | None:
    """Scores of `outputs` [N, C] with 95% intervals; None where they are not finite.

    Beside those of `kdcache.labels.metrics`: macro-F1, its interval from 2,000 resamples of the
    documents, and the recall of each class that has any.
    """
    if not np.isfinite(outputs).all():
        return None
    if documents.regression:
        return regression(outputs[:, 0], documents.labels)
    labels, size = documents.classes, outputs.shape[1]
    table = np.zeros((size, size), np.int64)
    np.add.at(table, (labels, outputs.argmax(1)), 1)
    names = documents.plan.config.classes or []
    there = np.flatnonzero(table.sum(1))
    return {
        **classification(outputs, labels),
        "macro_f1": float(_macro_f1(table)),
        "macro_f1_interval": _interval(table),
        "recall": {names[i]: float(table[i, i] / table[i].sum()) for i in there},
    }


def _macro_f1(tables: Array) -> Array:
    """Mean F1 of the classes of confusion tables [..., C, C], of those seen or predicted."""
    hits = np.diagonal(tables, axis1=-2, axis2=-1)
    either = tables.sum(-1) + tables.sum(-2)
    f1 = 2 * hits / np.maximum(either, 1)
    mean: Array = f1.sum(-1) / np.maximum((either > 0).sum(-1), 1)
    return mean


def _interval(table: Array) -> list[float]:
    """The bootstrap's 95% interval of macro-F1: resampled documents are resampled cells."""
    filled = np.argwhere(table)
    shares = table[tuple(filled.T)] / table.sum()
    drawn = np.random.default_rng(0).multinomial(int(table.sum()), shares, RESAMPLES)
    classes, numbers = np.unique(filled, return_inverse=True)
    tables = np.zeros((RESAMPLES, len(classes), len(classes)), np.int64)
    rows, columns = numbers.reshape(filled.shape).T
    tables[:, rows, columns] = drawn
    return [float(bound) for bound in np.quantile(_macro_f1(tables), (0.025, 0.975))]


def criterion(documents: Documents, *, weighted: bool) -> str:
    """The score that decides: accuracy, macro-F1 where classes are weighted, error of values."""
    if documents.regression:
        return "mse"
    return "macro_f1" if weighted else "accuracy"


def merit(scores: Json | None, by: str) -> tuple[float, float]:
    """What the best scores are largest in: the criterion, then cross-entropy where that is even."""
    if scores is None:
        return WORST
    if by == "mse":
        return -scores["mse"], 0.0
    return scores[by], -scores["cross_entropy"]


def step_loss(
    outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, variance: float
) -> torch.Tensor:
    """What a step lowers: cross-entropy in nats of logits [N, C], its mean weighted by class.

    Of values, [N, 1], the squared error as a share of the `variance` of all labels, so that one
    learning rate suits whatever unit they have.
    """
    if labels.is_floating_point():
        error = torch.nn.functional.mse_loss(outputs[:, 0].float(), labels.float())
        return error / variance
    return torch.nn.functional.cross_entropy(outputs.float(), labels, weight=weights)
