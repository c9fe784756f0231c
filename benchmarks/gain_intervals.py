"""Intervals of a difference in accuracy over test documents, over seeds, and over both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Flags = npt.NDArray[np.bool_]


def paired(before: Flags, after: Flags) -> dict[str, Any]:
    """Difference of two models in accuracy, from what each has right, [seeds, documents].

    "documents": 95% interval for other documents and these seeds; "seeds": for other seeds and
    these documents, by Student's t, None of one seed; "both": their variances added, which counts
    noise of single answers twice and so errs on the wide side. Accuracies are shares.
    """
    difference = after.astype(float) - before.astype(float)
    seeds, documents = difference.shape
    mean = float(difference.mean())
    by_document = float(difference.mean(0).var(ddof=1)) / documents
    found: dict[str, Any] = {
        "difference": mean,
        "seeds_better": int((difference.mean(1) > 0).sum()),
        "documents": _around(mean, by_document, documents - 1),
        "seeds": None,
        "both": None,
    }
    if seeds > 1:
        by_seed = float(difference.mean(1).var(ddof=1)) / seeds
        found["seeds"] = _around(mean, by_seed, seeds - 1)
        total = by_document + by_seed
        found["both"] = _around(mean, total, _freedom(by_document, documents, by_seed, seeds))
    return found


def points(gain: Mapping[str, Any]) -> tuple[float, float, float]:
    """A difference and its interval, in points: that over both, or of one seed over documents."""
    low, high = gain["both"] or gain["documents"]
    return 100 * gain["difference"], 100 * low, 100 * high


def told(gain: Mapping[str, Any]) -> str:
    """The same in words: +2.2 (+0.3 to +4.2)."""
    middle, low, high = points(gain)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def _around(mean: float, variance: float, freedom: float) -> list[float]:
    half = float(stats.t.ppf(0.975, freedom)) * variance**0.5
    return [mean - half, mean + half]


def _freedom(by_document: float, documents: int, by_seed: float, seeds: int) -> float:
    """Degrees of freedom of the sum of two variances (Satterthwaite 1946)."""
    below = by_document**2 / (documents - 1) + by_seed**2 / (seeds - 1)
    return (by_document + by_seed) ** 2 / below if below else documents - 1
