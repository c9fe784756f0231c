"""Several values a document: regression with a vector of targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kdcache.labels.base import (
    Array,
    Floats,
    LabelKind,
    Teaching,
    Told,
    known,
    known_rows,
    output_names,
)
from kdcache.labels.several import has_values, read_vectors
from kdcache.labels.several_metrics import several_values
from kdcache.labels.summed import correlation
from kdcache.labels.values import NO_DIVERGENCE, compare_values, fit_values
from kdcache.manifest import Json


def mean_squared_error(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the values of the squared error of outputs [N, C] and labels [N, C]: [N]."""
    there = known_rows(labels)[:, None]
    return torch.where(there, outputs - labels, 0.0).square().mean(-1)


def _predictions(outputs: Floats, labels: Array, names: Sequence[str]) -> Told:
    named = output_names(names, outputs.shape[1])
    rows = (
        (*(label.tolist() if labelled else [None] * len(named)), *output.tolist())
        for label, labelled, output in zip(labels, known(labels), outputs, strict=True)
    )
    columns = [f"{what}: {name}" for what in ("label", "prediction") for name in named]
    return Told(columns, rows)


def _scores(outputs: Floats, labels: Array, names: Sequence[str]) -> Json:
    return several_values(outputs, labels, output_names(names, outputs.shape[1]))


VECTORS = LabelKind(
    name="vectors",
    label_type="vector",
    called="regressor of several values",
    problem_type="regression",
    means=lambda problem_type, outputs: outputs > 1 and problem_type == "regression",
    column="values",
    dtype="float32",
    wide=True,
    activation="none",
    guess=lambda reader: reader.several and has_values(reader),
    read=read_vectors,
    hard_rows=mean_squared_error,
    no_divergence=NO_DIVERGENCE,
    compare=compare_values,
    scores=_scores,
    metric=lambda labels: "pearson" if (np.ptp(labels, axis=0) > 0).any() else "mse",
    summed=correlation,
    headline="pearson",
    predictions=_predictions,
    teaching=Teaching(fit=fit_values, by="mse", scale=lambda labels: np.var(labels, axis=0)),
)
