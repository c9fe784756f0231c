"""Predictions of a classifier as a CSV file, a row per document in corpus order."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from kdcache.errors import ConfigError
from kdcache.labels.base import Floats
from kdcache.plans import Plan


def write_predictions(path: Path, plan: Plan, logits: Floats) -> None:
    """Write label and prediction of each document as its kind of label has them.

    `logits` are [documents, C]. Raises ConfigError for a language model, which predicts tokens.
    """
    kind = plan.config.label_kind
    if kind.predictions is None:
        raise ConfigError("predictions are written for text-classification only")
    told = kind.predictions(logits, kind.of(plan.examples, plan.docs), plan.config.classes or [])
    ids, rows = plan.examples["doc_id"][plan.docs], list(told.rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("document", *told.columns))
        for index in np.argsort(ids, kind="stable"):
            writer.writerow((int(ids[index]), *rows[index]))
