"""Predictions of a classifier as a CSV file, a row per document in corpus order."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdcache.errors import ConfigError
from kdcache.labels.base import Floats
from kdcache.plans import Plan


def write_predictions(path: Path, plan: Plan, logits: Floats) -> None:
    """Write label and prediction of each document, or of each of its rows, numbered.

    `logits` are [rows, C]. Raises ConfigError for a language model, which predicts tokens.
    """
    kind = plan.label_kind
    if kind.predictions is None:
        raise ConfigError(f"predictions are not written for {plan.task}")
    told = kind.predictions(logits, plan.labels(plan.docs), plan.config.classes or [])
    counts = plan.spans(plan.docs, plan.task.rows)[1]
    ids = np.repeat(plan.per_document["doc_id"][plan.docs], counts)
    rows: list[Sequence[object]] = list(told.rows)
    numbered = ("row",) if plan.task.selects else ()
    if numbered:
        places = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = [(int(place), *row) for place, row in zip(places, rows, strict=True)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("document", *numbered, *told.columns))
        for index in np.argsort(ids, kind="stable"):
            writer.writerow((int(ids[index]), *rows[index]))
