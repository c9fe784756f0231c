"""Scores agree with scikit-learn, SciPy and slow loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from kdcache.labels.metrics import (
    calibration_error,
    classification,
    language,
    log_softmax,
    regression,
    wilson,
)


def draw(rows: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(0, 2, (rows, classes)).astype(np.float32)
    logits[np.arange(rows), labels] += rng.choice([0, 3], rows)
    return logits, labels


@pytest.mark.parametrize("classes", [2, 3, 17])
def test_classification_scores_are_scikit_learns(classes: int) -> None:
    logits, labels = draw(251, classes)
    found = classification(logits, labels)
    predicted = logits.argmax(1)
    average = "binary" if classes == 2 else "macro"
    assert found["accuracy"] == sk.accuracy_score(labels, predicted)
    assert found["f1"] == pytest.approx(sk.f1_score(labels, predicted, average=average))
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(labels, predicted))
    chances = np.exp(logits - logits.max(1, keepdims=True).astype(np.float64))
    chances /= chances.sum(1, keepdims=True)
    wanted = sk.log_loss(labels, chances, labels=range(classes))
    assert found["cross_entropy"] == pytest.approx(wanted, rel=1e-6)


def slow_calibration_error(chances: Any, labels: Any, bins: int) -> float:
    """Guo et al. 2017, equation 3, as it is written."""
    error = 0.0
    for b in range(bins):
        members = [
            (row.max(), int(row.argmax()) == label)
            for row, label in zip(chances, labels, strict=True)
            if b / bins <= row.max() < (b + 1) / bins or (b == bins - 1 and row.max() == 1)
        ]
        if members:
            confidence = sum(chance for chance, _ in members) / len(members)
            accuracy = sum(right for _, right in members) / len(members)
            error += len(members) / len(labels) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize(("classes", "bins"), [(2, 15), (5, 15), (5, 4)])
def test_calibration_error_is_that_of_a_slow_loop(classes: int, bins: int) -> None:
    logits, labels = draw(307, classes, seed=classes)
    logprobs = log_softmax(logits)
    wanted = slow_calibration_error(np.exp(logprobs), labels, bins)
    assert calibration_error(logprobs, labels, bins) == pytest.approx(wanted, abs=1e-12)
    assert wanted > 0.01


def test_calibration_error_of_certain_predictions_is_the_error_rate() -> None:
    logprobs = np.array([[0.0, -np.inf]] * 4)
    assert calibration_error(logprobs, np.array([0, 0, 0, 1])) == pytest.approx(0.25)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (81, 263), (1, 2)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    wanted = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_regression_scores_are_scipys() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(2, 3, 101).astype(np.float32)
    values = (targets + rng.normal(0, 1, 101)).astype(np.float32)
    found = regression(values, targets)
    assert found["pearson"] == pytest.approx(stats.pearsonr(values, targets).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(values, targets).statistic)
    assert found["mse"] == pytest.approx(sk.mean_squared_error(targets, values), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "targets"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([1], [2])]
)
def test_there_is_no_correlation_with_a_constant(values: list[int], targets: list[int]) -> None:
    found = regression(np.array(values, np.float32), np.array(targets, np.float32))
    assert (found["pearson"], found["spearman"]) == (None, None)
    assert math.isfinite(found["mse"])


def test_scores_of_a_single_class_are_defined() -> None:
    found = classification(np.array([[1.0, 0.0]] * 5, np.float32), np.zeros(5, np.int64))
    assert (found["accuracy"], found["f1"], found["matthews"]) == (1.0, 0.0, 0.0)


def test_log_softmax_is_exact_for_large_logits() -> None:
    logits = np.array([[1e4, 1e4 - 1, -1e4]], np.float32)
    wanted = -math.log1p(math.exp(-1))
    np.testing.assert_allclose(log_softmax(logits)[0, :2], [wanted, wanted - 1], rtol=1e-12)


def test_language_scores_and_intervals_are_scipys() -> None:
    rng = np.random.default_rng(4)
    nats, correct = rng.gamma(2.0, 1.5, 400), rng.random(400) < 0.3
    found = language(nats, correct)
    assert found["cross_entropy"] == pytest.approx(nats.mean())
    assert found["perplexity"] == pytest.approx(np.exp(nats.mean()))
    low, high = stats.norm.interval(0.95, nats.mean(), nats.std() / 20)
    assert found["cross_entropy_interval"] == pytest.approx([low, high])
    shares = stats.binomtest(int(correct.sum()), 400).proportion_ci(method="wilson")
    assert found["accuracy_interval"] == pytest.approx([shares.low, shares.high])
    assert language(np.array([800.0]), correct[:1])["perplexity"] == math.inf


def test_the_interval_of_a_correlation_is_fishers() -> None:
    rng = np.random.default_rng(5)
    targets = rng.normal(size=60)
    values = targets + rng.normal(size=60)
    found = regression(values, targets)
    z, half = np.arctanh(found["pearson"]), stats.norm.ppf(0.975) / np.sqrt(57)
    assert found["pearson_interval"] == pytest.approx(np.tanh([z - half, z + half]))
    assert regression(values[:3], targets[:3])["pearson_interval"] is None
