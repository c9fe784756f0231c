"""Scores where a document has several classes or values: scikit-learn's and SciPy's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kdcache.labels.base import Array, Floats
from kdcache.labels.metrics import regression, wilson
from kdcache.manifest import Json

RESAMPLES = 2000


def several_classes(logits: Floats, labels: Array, names: Sequence[str]) -> Json:
    """Scores of logits [N, C] against labels [N, C] of 0 and 1; a class is said above a half.

    F1, precision and recall over all decisions (micro; with its 95% interval from 2,000 resamples
    of the documents) and as the mean of classes (macro), the
    share of documents whose classes are all right with its 95% interval, that of wrong decisions
    (Hamming), the means over classes of average precision and of the area under the ROC curve
    (None where no class has what they ask for), cross-entropy in nats a document, and the scores of
    every class.
    """
    from sklearn import metrics as sk

    predicted = (logits > 0).astype(np.int64)
    truth = labels.astype(np.int64)
    micro = sk.precision_recall_fscore_support(truth, predicted, average="micro", zero_division=0)
    each = sk.precision_recall_fscore_support(truth, predicted, average=None, zero_division=0)
    exact = float((predicted == truth).all(1).mean())
    ranked = _each(sk.average_precision_score, truth, logits, lambda column: column.any())
    area = _each(sk.roc_auc_score, truth, logits, lambda column: len(np.unique(column)) > 1)
    nats = np.logaddexp(0.0, np.where(truth == 1, -1.0, 1.0) * logits.astype(np.float64))
    return {
        "micro_f1": float(micro[2]),
        "micro_f1_interval": _interval(truth, predicted),
        "macro_f1": float(each[2].mean()),
        "micro_precision": float(micro[0]),
        "micro_recall": float(micro[1]),
        "exact_match": exact,
        "exact_match_interval": list(wilson(exact, len(truth))),
        "hamming_loss": float(sk.hamming_loss(truth, predicted)),
        "average_precision": _mean(ranked),
        "roc_auc": _mean(area),
        "cross_entropy": float(nats.sum(1).mean()),
        "classes": {
            name: {
                "f1": float(each[2][i]),
                "precision": float(each[0][i]),
                "recall": float(each[1][i]),
                "average_precision": ranked[i],
                "roc_auc": area[i],
                "documents": int(each[3][i]),
            }
            for i, name in enumerate(names)
        },
    }


def several_values(outputs: Floats, labels: Array, names: Sequence[str]) -> Json:
    """Scores of outputs [N, C] against values [N, C]: the means over the values, and of each its
    Pearson and Spearman correlation and mean squared error.

    A correlation is None where a side is constant, a mean is over those that there are.
    """
    each = [regression(outputs[:, i], labels[:, i]) for i in range(labels.shape[1])]
    return {
        "pearson": _mean(one["pearson"] for one in each),
        "spearman": _mean(one["spearman"] for one in each),
        "mse": float(np.mean([one["mse"] for one in each])),
        "values": dict(zip(names, each, strict=True)),
    }


def _interval(truth: Array, predicted: Array) -> list[float]:
    """The bootstrap's 95% interval of micro-F1, documents alike in what it counts drawn at once."""
    found = np.stack([(truth & predicted).sum(1), (truth ^ predicted).sum(1)], 1)
    alike, counts = np.unique(found, axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(truth), counts / len(truth), RESAMPLES)
    right, wrong = (drawn @ alike).T
    f1 = 2 * right / np.maximum(2 * right + wrong, 1)
    return [float(bound) for bound in np.quantile(f1, (0.025, 0.975))]


def _each(
    score: Callable[[Array, Floats], Any],
    truth: Array,
    logits: Floats,
    serves: Callable[[Array], Any],
) -> list[float | None]:
    """A score of every class by itself; None of one that has nothing to tell apart."""
    columns = zip(truth.T, logits.T, strict=True)
    return [float(score(one, predicted)) if serves(one) else None for one, predicted in columns]


def _mean(found: Iterable[float | None]) -> float | None:
    there = [value for value in found if value is not None]
    return float(np.mean(there)) if there else None
