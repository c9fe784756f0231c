"""The scores of kinds of labels that are made of what documents add up to."""

from __future__ import annotations

import math

import numpy as np

from kdcache.labels.base import Array, Floats
from kdcache.labels.metrics import Z95, wilson
from kdcache.tasks.summed import Summed, Sums, f1, mean, ratio

CONSTANT = 1e-12
"""Share of the mean square: a variance below it is that of one value, left by rounding."""


def accuracy(logits: Floats, labels: Array) -> Summed:
    """The share of logits [N, C] whose largest is that of the class in labels [N]."""
    found = mean("accuracy", logits.argmax(1) == labels, high=1.0)

    def interval(sums: Sums) -> list[float]:
        return list(wilson(float(found.of(sums)), int(sums[0])))

    return Summed(
        name=found.name, adds=found.adds, of=found.of, low=0.0, high=1.0, interval=interval
    )


def micro_f1(logits: Floats, labels: Array) -> Summed:
    """F1 over all decisions, of logits and labels of 0 and 1, [N, C] both."""
    told, there = logits > 0, labels == 1
    return f1("micro_f1", (told & there).sum(1), told.sum(1) + there.sum(1))


def correlation(values: Floats, targets: Array) -> Summed:
    """Pearson's, the mean of it over C columns of values and targets, [N, C] both, or [N].

    The mean squared error where no target differs from another: there is no correlation to tell.
    """
    x, y = (np.asarray(side, np.float64).reshape(len(targets), -1) for side in (values, targets))
    if not (np.ptp(y, axis=0) > 0).any():
        return mean("mse", ((x - y) ** 2).mean(1))
    x, y = x - x.mean(0), y - y.mean(0)  # moments lose digits far from 0
    columns = x.shape[1]
    adds = np.concatenate([np.ones((len(x), 1)), x, y, x * x, y * y, x * y], 1)

    def of(sums: Sums) -> Sums:
        count = sums[..., :1]
        mx, my, xx, yy, xy = np.split(sums[..., 1:], 5, axis=-1)
        varies = (xx * count - mx**2 > CONSTANT * xx * count) & (
            yy * count - my**2 > CONSTANT * yy * count
        )
        under = np.sqrt(np.where(varies, (xx * count - mx**2) * (yy * count - my**2), 0.0))
        each = ratio(xy * count - mx * my, under)
        return ratio(np.where(varies, each, 0.0).sum(-1), varies.sum(-1))

    def interval(sums: Sums) -> list[float] | None:
        """By Fisher's transformation, as that of the score itself."""
        found, count = float(of(sums)), float(sums[0])
        if columns > 1 or count < 4 or math.isnan(found):
            return None
        middle, half = np.arctanh(np.clip(found, -1 + 1e-15, 1 - 1e-15)), Z95 / math.sqrt(count - 3)
        return [float(bound) for bound in np.tanh([middle - half, middle + half])]

    return Summed(name="pearson", adds=adds, of=of, low=-1.0, high=1.0, interval=interval)
