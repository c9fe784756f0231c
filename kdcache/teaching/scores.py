"""Scores of a model under way, and which of two is the better."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.evaluation.scoring import BATCH, LOWER_IS_BETTER, token_budget
from kdcache.evaluation.scoring import predict as outputs_of
from kdcache.labels import LabelKind
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
    names, kind = documents.plan.config.classes or [], documents.kind
    assert kind.scores is not None
    found = kind.scores(outputs, documents.labels, names)
    if not kind.numbered:
        return found
    labels, size = documents.classes, outputs.shape[1]
    table = np.zeros((size, size), np.int64)
    np.add.at(table, (labels, outputs.argmax(1)), 1)
    there = np.flatnonzero(table.sum(1))
    return {
        **found,
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
    """The score that decides: that of the kind, macro-F1 where classes are weighted."""
    return "macro_f1" if weighted else documents.teaching.by


def merit(scores: Json | None, by: str) -> tuple[float, float]:
    """What the best scores are largest in: the criterion, then cross-entropy where that is even."""
    if scores is None or scores[by] is None:
        return WORST
    better = -scores[by] if by in LOWER_IS_BETTER else scores[by]
    return better, -scores.get("cross_entropy", 0.0)


def step_loss(
    kind: LabelKind,
    outputs: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    scale: torch.Tensor | None,
) -> torch.Tensor:
    """What a step lowers: the mean over documents of what their kind of label costs.

    Cross-entropy in nats of logits [N, C] of classes, its mean weighted by class. Of values the
    squared error as a share of their variance `scale`, a number or [C], so that one learning rate
    suits whatever unit they have.
    """
    if kind.numbered:
        return torch.nn.functional.cross_entropy(outputs.float(), labels, weight=weights)
    outputs = outputs.float()
    if scale is None or scale.dim() == 0:
        loss = kind.hard_rows(outputs, labels).mean()
        return loss if scale is None else loss / scale
    root = scale.clamp(min=torch.finfo(scale.dtype).tiny).sqrt()
    return kind.hard_rows(outputs / root, labels / root).mean()
