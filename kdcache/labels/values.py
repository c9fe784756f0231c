"""One value a document: regression."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from kdcache.errors import CorpusError
from kdcache.labels.base import Array, Floats, Known, LabelKind, Labels, Teaching, Told, known_rows
from kdcache.labels.class_labels import no_label
from kdcache.labels.metrics import regression
from kdcache.labels.reader import LARGEST, LabelReader
from kdcache.labels.readings import number
from kdcache.labels.summed import correlation
from kdcache.manifest import Json
from kdcache.tasks import IGNORE_INDEX

NO_DIVERGENCE = (
    "the teacher gives values, not probabilities; use the loss logit_mse (recipe kd-mse)"
)


def _look_like_values(reader: LabelReader) -> bool:
    """Whether single labels are numbers, and not all of them whole ones."""
    names = reader.names
    return (
        not reader.several
        and bool(names)
        and all(reader.value(name) is not None for name in names)
        and not all(name in reader.truths or _is_int(name) for name in names)
    )


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def read_values(reader: LabelReader, given: Known) -> Labels:
    """A value for each document, [N] float32.

    Every number is one, -1 like any other, and -100 where a label lies below it. Raises
    CorpusError, naming file and line, for a label that is no number.
    """
    values = [_target(reader, name, given.corpus) for name in reader.names]
    table = np.array([*values, math.nan], np.float32)
    codes = np.asarray(reader.codes, np.int32)
    notes = []
    if values and min(values) == IGNORE_INDEX:
        unlabelled = np.flatnonzero(table == IGNORE_INDEX)
        table[unlabelled] = math.nan
        documents = int(np.isin(codes, unlabelled).sum())
        notes.append(no_label(documents, reader.names[unlabelled[0]]))
    if given.guess:
        notes.append(
            "labels are numbers with a point: taken as regression values "
            "(--label-type class makes whole ones classes)"
        )
    return Labels("regression", None, table[codes], tuple(notes))


def _target(reader: LabelReader, name: str, corpus_names: Sequence[str] | None) -> float:
    """The value of a label; of a class that the corpus names, what its name says."""
    value, label = reader.value(name), name
    if corpus_names is not None and value is not None:
        if value < 0:
            return float(IGNORE_INDEX)
        label = corpus_names[int(value)] if value < len(corpus_names) else label
        value = number(label)
    if value is None or abs(value) > LARGEST:
        what = "is not a number" if value is None else "is beyond what float32 holds"
        raise CorpusError(
            f"{reader.first_seen[name]}: label {label!r} {what}; correct it, or name another "
            "column with --label-column"
        )
    return value


def fit_values(read: Floats, labels: Array, bias: bool) -> tuple[Floats, Floats]:
    """Ridge regression of values [N] or [N, C] on what a head reads, [N, H]: [C, H] and [C]."""
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha=1.0, fit_intercept=bias).fit(read, labels)
    weight = np.atleast_2d(fitted.coef_)
    return weight, np.broadcast_to(fitted.intercept_, len(weight)).copy()


def squared_error(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared error of outputs [N, 1] and values [N]: [N]."""
    error = torch.where(known_rows(labels), outputs.squeeze(-1) - labels, 0.0)
    return error.square()


def compare_values(mine: torch.Tensor, theirs: torch.Tensor) -> tuple[None, torch.Tensor]:
    """How far outputs [N, C] of two models are apart: the mean of the squared differences, [N]."""
    return None, (mine - theirs).double().square().mean(-1)


def _scores(outputs: Floats, labels: Array, names: Sequence[str]) -> Json:
    return regression(outputs[:, 0], labels)


def _predictions(outputs: Floats, labels: Array, names: Sequence[str]) -> Told:
    rows = (
        (None if math.isnan(target) else target, value, None)
        for target, value in zip(labels.tolist(), outputs[:, 0].tolist(), strict=True)
    )
    return Told(("label", "prediction", "confidence"), rows)


VALUES = LabelKind(
    name="regression",
    label_type="float",
    called="regressor",
    problem_type="regression",
    means=lambda problem_type, outputs: outputs == 1 and problem_type in (None, "regression"),
    column="value",
    dtype="float32",
    guess=_look_like_values,
    read=read_values,
    hard_rows=squared_error,
    no_divergence=NO_DIVERGENCE,
    compare=compare_values,
    scores=_scores,
    metric=lambda labels: "pearson" if len(np.unique(labels)) > 1 else "mse",
    summed=correlation,
    headline="pearson",
    predictions=_predictions,
    teaching=Teaching(fit=fit_values, by="mse", scale=np.var),
)
