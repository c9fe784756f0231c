"""Which of several models no other beats."""

from __future__ import annotations

from collections.abc import Sequence


def on_front(models: Sequence[tuple[float, float]], *, higher: bool = True) -> list[bool]:
    """Of scores with costs, whether no other is at least as good in both and better in one."""
    sign = 1 if higher else -1
    return [
        not any(
            sign * other >= sign * score and paid <= cost and (other, paid) != (score, cost)
            for other, paid in models
        )
        for score, cost in models
    ]
