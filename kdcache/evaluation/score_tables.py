"""What scores are called, and scores of models as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdcache.labels import LABEL_KINDS
from kdcache.manifest import Json
from kdcache.rendering import Table
from kdcache.tasks import TASKS

SCORES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "micro_f1": "F1, all decisions (micro)",
    "macro_f1": "F1, mean of the classes (macro)",
    "exact_match": "documents with all classes right",
    "hamming_loss": "wrong decisions (Hamming loss)",
    "average_precision": "average precision, mean of the classes",
    "roc_auc": "area under the ROC curve, mean of the classes",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "mean squared error",
    "cross_entropy": "cross-entropy, nats",
    "perplexity": "perplexity",
    "calibration_error": "expected calibration error",
}
EACH = {"classes": "class", "values": "value"}
"""Where scores of every output stand, and what an output is called."""


def teachers_score(teacher: Json) -> str:
    """What a teacher scores on a dev set, "about" where that is an estimate."""
    return f"{'about ' if teacher.get('estimate') else ''}{teacher['value']:.4g}"


def called(metric: str) -> str:
    """What a metric is called."""
    return SCORES.get(metric, metric.replace("_", " "))


def names_of(task: str) -> dict[str, str]:
    """The scores that models of a task may have, those of its own first, and what they are called.

    Of a task that this version does not know, those that all tasks have.
    """
    own = dict(TASKS[task].told) if task in TASKS else {}
    return own | SCORES


def headline(scores: Json, task: str) -> str:
    """The score that tells models apart; "" where there is none."""
    kinds = [kind.headline for kind in LABEL_KINDS.values() if kind.headline]
    own = [name for name, _ in TASKS[task].told] if task in TASKS else []
    language = [] if task in TASKS and TASKS[task].labelled else ["cross_entropy"]
    wanted = [*own, *language, *dict.fromkeys(kinds), *SCORES]
    return next((name for name in wanted if scores.get(name) is not None), "")


def score_cell(side: Json, name: str) -> str:
    """A score with its 95% interval; nothing where there is none."""
    value = side.get(name)
    return "" if value is None else with_bounds(value, side.get(f"{name}_interval"))


def with_bounds(value: float, interval: Sequence[float] | None) -> str:
    """A figure with its interval, where there is one."""
    bounds = "" if interval is None else f" ({interval[0]:.4g} to {interval[1]:.4g})"
    return f"{value:.4g}{bounds}"


def score_table(sides: Mapping[str, Json], task: str, first: str = "") -> Table:
    """A row for every score that a side has, a column for each of `sides`, by its name.

    A side named `first` decides which scores are told.
    """
    asked = [sides[first]] if first else [*sides.values()]
    rows = [
        (label, *(score_cell(side, name) for side in sides.values()))
        for name, label in names_of(task).items()
        if any(side.get(name) is not None for side in asked)
    ]
    return Table(("", *sides), tuple(rows))


def each_output(scores: Json) -> Table | None:
    """The scores of every class, or every value, where a document has several."""
    for what, name in EACH.items():
        found = scores.get(what)
        if isinstance(found, dict) and found:
            heads = [key for key in next(iter(found.values())) if not key.endswith("_interval")]
            rows = [(one, *(figure(side[key]) for key in heads)) for one, side in found.items()]
            return Table((name, *(key.replace("_", " ") for key in heads)), tuple(rows))
    return None


def figure(value: float | None) -> str:
    """A figure to four digits; nothing where there is none."""
    return "" if value is None else f"{value:.4g}"
