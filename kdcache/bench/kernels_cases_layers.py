"""The case of the costs between layers, as an earth mover's distance needs them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import kdcache_kernels as kernels
from kdcache.bench.kernels_case import Case, plain
from kdcache.bench.kernels_inputs import Size, Tensors, draw_hidden
from kdcache.bench.rivals import full

OURS, THEIRS = 6, 12  # layers of the student, and of the teacher
STUDENTS = tuple(f"student{layer}" for layer in range(OURS))


def _draw(size: Size, dtype: torch.dtype, device: torch.device, dense: bool) -> Tensors:
    """Hidden states of every layer of both sides, under names of their own."""
    found: Tensors = {}
    for layer in range(THEIRS):
        drawn = draw_hidden(size, dtype, device)
        turned = {name: value.roll(layer, 0) for name, value in drawn.items()}
        ours = "student" if layer < OURS else None
        found |= {f"{n}{layer}": value for n, value in turned.items() if n != "student" or ours}
    return found


def _flow(like: Tensor) -> Tensor:
    """What flows between layers where every two of the teacher go to one, [OURS, THEIRS].

    A plan is known only once all costs are: who skips the others here computes something else.
    """
    flow = like.new_zeros(OURS, THEIRS)
    theirs = torch.arange(THEIRS, device=like.device)
    flow[theirs * OURS // THEIRS, theirs] = 1 / THEIRS
    return flow


def _layer_costs(x: Tensors) -> Tensor:
    sides = ([x[f"{name}{i}"] for i in range(THEIRS)] for name in ("codes", "scale"))
    costs = kernels.layer_costs([x[name] for name in STUDENTS], *sides)
    return (_flow(costs) * costs).sum()


def _sides(x: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    ours = [full(x[name]) for name in STUDENTS]
    steps = [x[f"scale{i}"][:, None].to(ours[0].dtype) for i in range(THEIRS)]
    return ours, [x[f"codes{i}"].to(ours[0].dtype) * step for i, step in enumerate(steps)]


def _all_pairs(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack([mse_loss(one, t) for t in theirs]) for one in ours])


def _plainly(x: Tensors) -> Tensor:
    costs = _all_pairs(*_sides(x))
    return (_flow(costs) * costs).sum()


def _leanly(x: Tensors) -> Tensor:
    """Costs without a graph; then the gradient, which is that from the mean of what flows."""
    ours, theirs = _sides(x)
    with torch.no_grad():
        costs = _all_pairs(ours, theirs)
        flow = _flow(costs)
        value = (flow * costs).sum()
    every = torch.stack(theirs)
    total = flow.sum(1)
    means = (torch.tensordot(flows / flows.sum(), every, 1) for flows in flow)
    apart = [w * mse_loss(s, t) for w, s, t in zip(total, ours, means, strict=True)]
    from_means = torch.stack(apart).sum()
    return from_means + (value - from_means.detach())


def _bytes(size: Size, item: int) -> int:
    """Every layer for the costs, and again for the gradient, which needs a plan made of them."""
    return size.rows * size.hidden * (2 * (OURS * item + THEIRS) + OURS * item)


LAYER_COSTS = Case(
    op="layer_costs",
    variant=f"{OURS} x {THEIRS}",
    ours=_layer_costs,
    oracle=_plainly,
    draw=_draw,
    leaves=STUDENTS,
    outputs=("loss", *STUDENTS),
    sizes=("rows", "hidden"),
    bytes=_bytes,
    rivals=plain(_leanly),
)
