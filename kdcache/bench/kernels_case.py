"""What a measured case is: an op, how to draw its inputs, the least work it needs, its rivals."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.bench.kernels_inputs import Formula, Size, Tensors
from kdcache.bench.report import Json, installed

LOSS_SCALE = 1024.0  # per row

Missing = Callable[[torch.device], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival:
    """Another way to the same loss, or to `oracle` if that is a near relative of ours."""

    name: str
    formula: Formula
    oracle: Formula | None = None
    missing: Missing = lambda device: None
    """Why it cannot run on a device, None if it can."""
    dense: bool = False
    """Takes the teacher over the whole vocabulary, ready made."""
    compiled: bool = False
    """Is made by torch.compile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """An op in one variant.

    `ours` is the op and `oracle` the plain formula of the same, float64 in the check. `draw` takes
    (size, dtype, device, dense) and makes the named inputs; `leaves` are those with gradients,
    none for an encoder; `outputs` name what a run returns, after `view` if that is given. `bytes`
    is what one read of every input and one write of every output come to, `flops` the operations
    of its matrix products, 0 if it has none: the slower of the two is the limit. `parts` are those
    of a call that has several, each with its bytes and operations. `own` says that
    the op overwrites its input, so that every call gets a copy, made off the clock. So is `laid`
    applied, where the op has its inputs in another layout, which `view` turns back.
    """

    op: str
    variant: str
    ours: Formula
    oracle: Formula
    draw: Callable[[Size, torch.dtype, torch.device, bool], Tensors]
    leaves: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: tuple[str, ...]
    bytes: Callable[[Size, int], int]
    flops: Callable[[Size], int] = lambda size: 0
    parts: Callable[[Size, torch.dtype, torch.device], Json] = lambda size, dtype, device: {}
    view: Callable[[Tensors, tuple[Tensor, ...]], tuple[Tensor, ...]] = lambda x, out: out
    laid: Callable[[Tensors], Tensors] = lambda x: x
    rivals: tuple[Rival, ...] = ()
    own: bool = False
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)

    def scale(self, x: Tensors) -> float:
        """What the loss is multiplied by before it is differentiated: 1 but for float16.

        As a loss scaler does, or the gradient of a mean would underflow.
        """
        first = x[self.leaves[0]] if self.leaves else next(iter(x.values()))
        return LOSS_SCALE * first.shape[0] if first.dtype == torch.float16 else 1.0

    def fresh(self, formula: Formula, x: Tensors) -> Tensors:
        """Inputs for one run of `formula`, as it has them: leaves anew, copied if overwritten."""
        x = self.laid(x) if formula is self.ours else x
        leaves = {name: x[name].detach().requires_grad_() for name in self.leaves}
        if self.own and formula is self.ours:
            leaves = {name: leaf.clone() for name, leaf in leaves.items()}
        return {**x, **leaves}

    def run(self, formula: Formula, x: Tensors) -> tuple[Tensor, ...]:
        """A training step's share: the loss and the gradients; or what else a formula returns.

        `x` comes from `fresh`. The gradients are those of `scale` times the loss.
        """
        out = formula(x)
        if isinstance(out, tuple):
            return out
        scale = self.scale(x)
        factor = None if scale == 1 else torch.full_like(out, scale)
        leaves = [x[name] for name in self.leaves]
        return (out.detach(), *torch.autograd.grad(out, leaves, factor))


def plain(formula: Formula, by_hand: Formula | None = None) -> tuple[Rival, ...]:
    """The leanest formula as it stands and compiled, and one whose gradient is written by hand."""
    own = () if by_hand is None else (Rival(name="eager, own gradient", formula=by_hand),)
    return (
        Rival(name="eager", formula=formula),
        *own,
        Rival(
            name="torch.compile",
            formula=lambda x: _compiled(formula)(x),
            missing=needs_compiler,
            compiled=True,
        ),
    )


@cache
def _compiled(formula: Formula) -> Any:
    return torch.compile(formula, dynamic=False)


def needs_compiler(device: torch.device) -> str | None:
    """Why torch.compile cannot run here, None if it can."""
    if device.type != "cpu":
        return None
    # Inductor cuts the compiler's command line at blanks, and does not quote where libraries lie.
    for folder in (str(Path(torch.__file__).parent), str(sysconfig.get_config_var("LIBDIR"))):
        if len(folder.split()) > 1:
            return f"its compiler takes no path with a space, and this is one: {folder}"
    return None if any(map(shutil.which, ("g++", "clang++", "c++"))) else "no C++ compiler"


def needs_liger(device: torch.device) -> str | None:
    """Why Liger cannot run here, None if it can."""
    if device.type != "cuda":
        return "runs on a GPU only"
    return None if installed("liger-kernel") else "liger-kernel is not installed"


def needs_torch_2_13(device: torch.device) -> str | None:
    """Why torch's fused linear cross-entropy cannot run here, None if it can."""
    if hasattr(F, "linear_cross_entropy"):
        return None
    return f"needs torch 2.13; this is {torch.__version__}"
