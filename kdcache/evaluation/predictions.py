"""Predictions of a classifier as a CSV file, a row per document in corpus order."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from kdcache.errors import ConfigError
from kdcache.evaluation.metrics import Floats, log_softmax
from kdcache.plans import Plan

COLUMNS = ("document", "label", "prediction", "confidence")


def write_predictions(path: Path, plan: Plan, logits: Floats) -> None:
    """Write label, prediction and confidence of each document; `logits` [documents, C].

    For regression, the prediction is the value and the confidence is empty. Raises ConfigError for
    a language model, which predicts tokens.
    """
    if plan.config.problem == "tokens":
        raise ConfigError("predictions are written for text-classification only")
    order = np.argsort(plan.examples["doc_id"][plan.docs], kind="stable")
    rows = _values(plan, logits) if plan.config.problem == "regression" else _classes(plan, logits)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for index in order:
            writer.writerow((int(plan.examples["doc_id"][plan.docs[index]]), *rows[index]))


def _values(plan: Plan, values: Floats) -> list[tuple[object, ...]]:
    targets = plan.examples["value"][plan.docs]
    return [
        ("" if np.isnan(target) else f"{target:g}", f"{value:.6g}", "")
        for target, value in zip(targets, values[:, 0], strict=True)
    ]


def _classes(plan: Plan, logits: Floats) -> list[tuple[object, ...]]:
    logprobs = log_softmax(logits)
    names = plan.config.classes or [str(i) for i in range(logits.shape[1])]
    names += [f"LABEL_{i}" for i in range(len(names), logits.shape[1])]
    labels = plan.examples["label"][plan.docs]
    return [
        (names[label] if label >= 0 else "", names[top], f"{confidence:.4f}")
        for label, top, confidence in zip(
            labels, logprobs.argmax(1), np.exp(logprobs.max(1)), strict=True
        )
    ]
