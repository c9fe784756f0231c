"""How the costs of mapped layers become one number. COMBINE is the table of ways."""

from __future__ import annotations

from collections.abc import Callable

import torch

State = dict[str, torch.Tensor]

COMBINE: dict[str, Callable[[torch.Tensor, State], torch.Tensor]] = {
    "mean": lambda costs, state: costs.sum() / len(costs),
    "sum": lambda costs, state: costs.sum(),
}
"""Every way: the costs of the pairs of layers, [pairs] in the order of the layer map, and what the
loss keeps between steps -> a scalar."""
