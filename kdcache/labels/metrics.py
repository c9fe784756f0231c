"""Scores of predictions: scikit-learn's where it has them, calibration and intervals beside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from kdcache.manifest import Json

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
LARGEST_EXPONENT = 709  # math.exp overflows beyond
Z95 = 1.959964  # standard deviations on either side that hold 95% of a normal distribution


def classification(logits: Floats, labels: Ints) -> Json:
    """Accuracy with its 95% interval, F1, Matthews, calibration error and cross-entropy (nats).

    `logits` [N, C], `labels` [N]. F1 is that of class 1 for two classes, else the macro average.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    logprobs = log_softmax(logits)
    predicted = logprobs.argmax(1)
    average = "binary" if logits.shape[1] == 2 else "macro"
    accuracy = float(accuracy_score(labels, predicted))
    varied = len(np.union1d(labels, predicted)) > 1  # scikit-learn warns of a single class
    return {
        "accuracy": accuracy,
        "accuracy_interval": list(wilson(accuracy, len(labels))),
        "f1": float(f1_score(labels, predicted, average=average, zero_division=0)),
        "matthews": float(matthews_corrcoef(labels, predicted)) if varied else 0.0,
        "calibration_error": calibration_error(logprobs, labels),
        "cross_entropy": float(-logprobs[np.arange(len(labels)), labels].mean()),
    }


def regression(values: Floats, targets: Floats) -> Json:
    """Pearson and Spearman correlation and mean squared error of `values`, [N].

    Pearson's comes with its 95% interval.
    """
    from scipy.stats import pearsonr, spearmanr

    return {
        "pearson": _correlation(pearsonr, values, targets),
        "pearson_interval": _pearson_interval(values, targets),
        "spearman": _correlation(spearmanr, values, targets),
        "mse": float(np.mean((values.astype(np.float64) - targets) ** 2)),
    }


def _correlation(measure: Any, values: Floats, targets: Floats) -> float | None:
    """None where one side is constant: there is no correlation to speak of."""
    if len(values) < 2 or np.ptp(values) == 0 or np.ptp(targets) == 0:
        return None
    return float(measure(values, targets).statistic)


def _pearson_interval(values: Floats, targets: Floats) -> list[float] | None:
    """By Fisher's transformation; None where there is no correlation, or fewer than 4 rows."""
    from scipy.stats import pearsonr

    if len(values) < 4 or _correlation(pearsonr, values, targets) is None:
        return None
    return [float(bound) for bound in pearsonr(values, targets).confidence_interval()]


def language(nats: Floats, correct: npt.NDArray[np.bool_]) -> Json:
    """Cross-entropy (nats), perplexity and accuracy of N predicted tokens, with 95% intervals.

    The intervals take the rows as independent; those of one document are not quite.
    """
    mean, accuracy = float(nats.mean()), float(correct.mean())
    half = Z95 * float(nats.std()) / math.sqrt(len(nats))
    return {
        "cross_entropy": mean,
        "cross_entropy_interval": [mean - half, mean + half],
        "perplexity": math.exp(mean) if mean < LARGEST_EXPONENT else math.inf,
        "accuracy": accuracy,
        "accuracy_interval": list(wilson(accuracy, len(correct))),
    }


def calibration_error(logprobs: Floats, labels: Ints, bins: int = 15) -> float:
    """Expected calibration error over `bins` equal bins of confidence (Guo et al. 2017)."""
    confidence = np.exp(logprobs.max(1))
    correct = logprobs.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[which == b].mean() - confidence[which == b].mean()) * (which == b).mean()
        for b in np.unique(which)
    ]
    return float(np.sum(gaps))


def wilson(share: float, count: int) -> tuple[float, float]:
    """95% interval of a share of `count` trials (Wilson 1927)."""
    from scipy.stats import binomtest  # takes a second to import

    found = binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
    return float(found.low), float(found.high)


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log-probabilities, in nats and float64."""
    found: npt.NDArray[np.float64] = special.log_softmax(logits.astype(np.float64), axis=1)
    return found
