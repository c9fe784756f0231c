"""Means of the objective's terms between two logs, of all losses or of each head's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from kdcache.training.objective import Objective, Terms


class TermMeans:
    """Terms before their weights, summed since they were last logged.

    Args:
        objectives: by turn.
        heads: their names, where each is of a head of its own.
        reduce: adds a tensor up over all ranks; every rank has to call.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        heads: Sequence[str],
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.objectives, self.heads, self.reduce = objectives, heads, reduce
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._sums: dict[tuple[int, str], torch.Tensor] = {}
        self._steps: Counter[int] = Counter()

    def step(self, turn: int) -> None:
        """Count a step."""
        self._steps[turn] += 1

    def add(self, turn: int, terms: Terms) -> None:
        """Take in the terms of a batch."""
        for name, value in terms.items():
            key = turn, name
            self._sums[key] = self._sums.get(key, 0) + value.float()

    def means(self, *, weighed: bool = False) -> dict[str, float]:
        """Each term's mean over all steps; times its weight now if `weighed`."""
        means: dict[str, float] = {}
        for (turn, name), value in self._sums.items():
            weight = float(self.objectives[turn].bound[name].loss.weight) if weighed else 1.0
            mean = weight * self._mean(value, self._steps.total())
            means[name] = means.get(name, 0.0) + mean
        return means

    def of_heads(self) -> dict[str, float]:
        """Each head's terms, the mean over the steps of the head; nothing without heads."""
        return {
            f"{self.heads[turn]}.{name}": self._mean(value, self._steps[turn])
            for (turn, name), value in self._sums.items()
            if self.heads
        }

    def _mean(self, value: torch.Tensor, steps: int) -> float:
        return float(self.reduce(value / steps))
