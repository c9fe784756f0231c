"""A score that is made of what documents add up to: of all, of some of them, of draws of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Summed:
    """A score of N rows, or documents, by what each of them adds to its sums.

    Attributes:
        name: of the score, as reports have it.
        adds: [N, K] float64.
        of: the score of sums [..., K]: [...]; NaN where they tell none.
        low: the least that it can be.
        high: the most.
        interval: its 95% interval, of the sums [K] of rows that are independent; None where these
            are too few, or where it has none in closed form.
    """

    name: str
    adds: Sums
    of: Callable[[Sums], Sums]
    low: float
    high: float
    interval: Callable[[Sums], list[float] | None] = lambda sums: None


def mean(name: str, values: npt.NDArray[Any], *, high: float = np.inf) -> Summed:
    """The mean of values, [N], of 0 or more."""
    adds = np.stack([np.ones(len(values)), values.astype(np.float64)], 1)
    return Summed(name=name, adds=adds, of=lambda s: ratio(s[..., 1], s[..., 0]), low=0, high=high)


def f1(name: str, right: npt.NDArray[Any], either: npt.NDArray[Any]) -> Summed:
    """F1 over all documents (micro): of each, [N], how many things are told rightly, and how many
    are told and how many are there, added up. NaN where nothing is told and nothing there.
    """
    adds = np.stack([2 * right, either], 1).astype(np.float64)
    return Summed(name=name, adds=adds, of=lambda s: ratio(s[..., 0], s[..., 1]), low=0, high=1)


def ratio(over: Sums, under: Sums) -> Sums:
    """One by the other, [...] each; NaN where the other is 0."""
    found: Sums = np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0)
    return found
