"""Weights of classes in the loss, where some have many more documents than others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdcache.teaching.settings import ClassWeights

UNEVEN = 3.0  # times as many documents in the largest class as in the smallest
HEAVIEST = 10.0  # beyond, a handful of documents would make up whole steps

Floats = npt.NDArray[np.float64]


def class_weights(counts: npt.NDArray[np.int64], rule: ClassWeights) -> Floats | None:
    """The weight of each of C classes with `counts` [C] documents; None: all weigh the same.

    "balanced" is N / (C * count), scikit-learn's, of the classes that have documents, and at most
    `HEAVIEST`; "auto" takes it where the largest class has `UNEVEN` times as many documents as the
    smallest, or more.
    """
    there = counts > 0
    uneven = counts[there].max() >= UNEVEN * counts[there].min()
    if rule == "none" or (rule == "auto" and not uneven):
        return None
    weights = counts.sum() / (there.sum() * np.maximum(counts, 1))
    return np.where(there, np.minimum(weights, HEAVIEST), 1.0)
