"""Optimal transport between the layers of a student and of its teacher."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.errors import ModelError

Floats = npt.NDArray[np.float64]


def plan(costs: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The flow [M, N] that moves the weights of M layers to those of N others at least cost.

    It is a constant in the gradient, of the dtype of the costs [M, N]; `student` [M] and `teacher`
    [N] are the weights, 0 or more, each with a sum above 0, by which they are divided. The linear
    program is solved exactly, by the simplex method of HiGHS in scipy: 2 ms for 6 layers and 12,
    on one thread. Where costs are no numbers, in a run that diverges, all layers flow to all.
    """
    ours, theirs = (_shares(weights) for weights in (student, teacher))
    known = costs.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(known).all():
        found: Floats = np.outer(ours, theirs)
    else:
        found = _solved(known, ours, theirs)
    return torch.from_numpy(found).to(costs)


def _shares(weights: torch.Tensor) -> Floats:
    values: Floats = weights.detach().to("cpu", torch.float64).numpy()
    shares: Floats = values / values.sum()
    return shares


def _solved(costs: Floats, ours: Floats, theirs: Floats) -> Floats:
    from scipy.optimize import linprog  # takes half a second to import

    scale = costs.max(initial=0.0) or 1.0  # tolerances of the solver are absolute
    found: Any = linprog(
        (costs / scale).ravel(),
        A_eq=_sums(*costs.shape),
        b_eq=np.concatenate([ours, theirs]),
        method="highs-ds",
    )
    if found.x is None:
        raise ModelError(f"no transport between layers was found: {found.message}")
    flow: Floats = np.clip(found.x, 0.0, None).reshape(costs.shape)
    return flow


@cache
def _sums(rows: int, columns: int) -> Floats:
    """What the sums of the rows, then of the columns, of a flattened matrix are of it."""
    return np.concatenate(
        [np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
    )


def next_weights(costs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weights [M] of layers in the next step, by what each paid in this one, [M].

    They are inverse to what a unit of weight paid. A layer that paid nothing gets none, as in the
    paper's code; where none paid, all keep theirs.

    Source: Li et al. 2020 (BERT-EMD), arXiv:2010.06133.
    """
    paid = torch.where(weights > 0, costs / weights, 0.0)
    inverse = torch.where(paid > 0, paid.sum() / paid, 0.0)
    total = inverse.sum()
    return torch.where(total.isfinite() & (total > 0), inverse / total, weights)
