"""Whether the labels of a corpus number its classes as a model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]

ENOUGH = 50  # labelled documents that tell
MOST = 1000  # labelled documents that are compared
POINTS = 0.2  # by which another numbering has to agree better
SHUFFLES = 99
SHOWN = 4


class Renumbering(NamedTuple):
    """A numbering that fits better: shares of agreement, and the model's class of each label."""

    documents: int
    agreement: float
    renumbered: float
    classes: dict[int, int]


class Numbering:
    """Collects labels and a model's likeliest classes, and finds labels numbered otherwise."""

    def __init__(self) -> None:
        self._labels: list[Ints] = []
        self._predicted: list[Ints] = []
        self._count = 0

    @property
    def enough(self) -> bool:
        """Whether there are labels enough to tell."""
        return self._count >= ENOUGH

    @property
    def full(self) -> bool:
        """Whether further labels are not compared."""
        return self._count >= MOST

    def add(self, labels: Ints, predicted: Ints) -> None:
        """Take in labels, [N] with negative ones for none, and likeliest classes, [N]."""
        chosen = np.flatnonzero(labels >= 0)[: MOST - self._count]
        self._labels.append(labels[chosen])
        self._predicted.append(predicted[chosen])
        self._count += len(chosen)

    def warning(self, names: Sequence[str] | None) -> str | None:
        """One line on a numbering that fits better, with the labels' class names; None if none."""
        if not self._count:
            return None
        found = renumber(np.concatenate(self._labels), np.concatenate(self._predicted))
        if found is None:
            return None
        moved = [
            f"{names[label] if names and label < len(names) else label} would be class {to}"
            for label, to in found.classes.items()
            if label != to
        ]
        more = ", ..." if len(moved) > SHOWN else ""
        return (
            f"warning: the model's likeliest class is the label of {found.agreement:.1%} of "
            f"{found.documents:,} documents, but of {found.renumbered:.1%} if labels were numbered "
            f"otherwise ({', '.join(moved[:SHOWN])}{more}): name its classes in id2label of its "
            "config.json and give labels by these names"
        )


def renumber(labels: Ints, predicted: Ints) -> Renumbering | None:
    """The one-to-one renumbering of labels, [N], that agrees best with the classes predicted, [N].

    None unless it agrees by 20 points more than the labels as they are, and by more than the best
    renumbering of any of 99 shuffles of the labels that do not agree: of many classes and few
    documents, chance alone agrees well with some renumbering.
    """
    agreement = float(np.mean(labels == predicted))
    renumbered, classes = _best(labels, predicted)
    if renumbered < agreement + POINTS:
        return None
    rng = np.random.default_rng(0)
    apart, shuffled = labels != predicted, labels.copy()
    for _ in range(SHUFFLES):
        shuffled[apart] = rng.permutation(labels[apart])
        if _best(shuffled, predicted)[0] >= renumbered:
            return None
    return Renumbering(len(labels), agreement, renumbered, classes)


def _best(labels: Ints, predicted: Ints) -> tuple[float, dict[int, int]]:
    """Share of agreement under the best renumbering, and where it takes each label."""
    from scipy.optimize import linear_sum_assignment

    ours, row = np.unique(labels, return_inverse=True)
    theirs, column = np.unique(predicted, return_inverse=True)
    confusion = np.zeros((len(ours), len(theirs)), np.int64)
    np.add.at(confusion, (row, column), 1)
    chosen = linear_sum_assignment(confusion, maximize=True)
    pairs = zip(ours[chosen[0]].tolist(), theirs[chosen[1]].tolist(), strict=True)
    return float(confusion[chosen].sum() / len(labels)), dict(pairs)
