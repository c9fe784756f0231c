"""layer_costs in plain torch, on any device and in float64 too: the oracle of the other backends.

Letters: N rows, H columns, G groups of columns with one scale each; M layers of the student, L of
the teacher.
"""

from typing import TypedDict

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype, gradient_dtype
from kdcache_kernels.hidden_mse.reference import decode
from kdcache_kernels.hidden_mse.reference import make_inputs as one_layer


class Inputs(TypedDict):
    """Tensors that `layer_costs` takes, as `make_inputs` draws them."""

    weight: Tensor
    student: list[Tensor]
    codes: list[Tensor]
    scale: list[Tensor]


def make_inputs(
    n: int,
    h: int,
    layers: tuple[int, int],
    *,
    groups: int = 0,
    dtype: torch.dtype = torch.float32,
    codes_dtype: torch.dtype = torch.int8,
) -> Inputs:
    """Draw `layers` of a student and of a teacher, and weights."""
    drawn = [
        one_layer(n, h, groups=groups, dtype=dtype, codes_dtype=codes_dtype, seed=seed)
        for seed in range(max(layers))
    ]
    return {
        "weight": drawn[0]["weight"],
        "student": [x["student"] for x in drawn[: layers[0]]],
        "codes": [x["codes"] for x in drawn[-layers[1] :]],
        "scale": [x["scale"] for x in drawn[-layers[1] :] if x["scale"] is not None],
    }


def layer_costs(
    weight: Tensor, student: list[Tensor], codes: list[Tensor], scale: list[Tensor]
) -> Tensor:
    """Return the costs [M, L]; see the public function."""
    live = weight != 0
    ours = _live(live, student, [])
    theirs = _live(live, codes, scale, compute_dtype(student[0]))
    rows = [[weight * (s - t).square().mean(1) for t in theirs] for s in ours]
    return torch.stack([torch.stack([x.sum() for x in one]) for one in rows])


def layer_costs_gradient(
    weight: Tensor,
    student: list[Tensor],
    codes: list[Tensor],
    scale: list[Tensor],
    flow: Tensor,
) -> list[Tensor]:
    """Return the gradient [N, H] of every layer of the student, given that of the costs [M, L]."""
    live = weight != 0
    ours = _live(live, student, [])
    theirs = _live(live, codes, scale, compute_dtype(student[0]))
    factor = 2 * weight[:, None] / student[0].shape[1]
    found = []
    for s, flows in zip(ours, flow, strict=True):
        total = torch.zeros_like(s)
        for t, part in zip(theirs, flows, strict=True):
            total.addcmul_(s - t, part)
        found.append((factor * total).to(gradient_dtype(student[0])))
    return found


def _live(
    live: Tensor, rows: list[Tensor], scale: list[Tensor], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Every layer in the precision of the arithmetic; a masked row, which may hold NaN, is 0."""
    kind = dtype or compute_dtype(rows[0])
    return [
        decode(x, scale[i] if scale else None, kind).where(live[:, None], 0)
        for i, x in enumerate(rows)
    ]
