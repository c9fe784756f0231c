"""Is an answer right? Value and gradients against the same formula in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kdcache.bench.kernels_case import Case, Rival
from kdcache.bench.kernels_inputs import SHARED, Formula, Tensors, rows_of

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 2e-3}
"""Relative; on top of twice what the plain formula is off by in the same dtype."""

CEILING = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 5e-2}
"""More than this is wrong, whatever plain torch does. Rivals may be as rough as this.

A logit of 8 to 16 is off by up to 1/32 in bfloat16, and so is its q of the small q - p.
"""

SAMPLE = 4  # rows looked at from the start, the middle and the end
WHOLE = 1 << 28  # logits up to which the gradient of a head is checked over all rows


def relative_error(got: Tensor, want: Tensor) -> float:
    """The larger of max|d| / max|want| and sum|d| / sum|want|; infinite if not finite or shaped so.

    The second sees a gradient that is missing everywhere but at its largest entries.
    """
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double(), want.double()
    off = (got - want).abs().masked_fill(got == want, 0)  # equal infinities are equal
    if not bool(off.isfinite().all()):
        return float("inf")
    size = want.abs().masked_fill(~want.isfinite(), 0)
    pairs = ((off.max(), size.max()), (off.sum(), size.sum()))
    return max(float(a / b) if b else float(a) for a, b in pairs)


def beyond(
    found: Mapping[str, float], plain: Mapping[str, float], dtype: torch.dtype
) -> dict[str, dict[str, float | None]]:
    """The outputs that are further off than they may be: their error, None if it is not finite,
    and what is allowed.
    """
    allowed = {name: min(2 * off + TOLERANCE[dtype], CEILING[dtype]) for name, off in plain.items()}
    return {
        name: {
            "error": found[name] if math.isfinite(found[name]) else None,
            "allowed": allowed[name],
        }
        for name in found
        if not found[name] <= allowed[name]
    }


def reason(error: Exception) -> str:
    """The first line of an error, with its kind."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


class Check:
    """The answers of one case against float64, on rows from the start, the middle and the end.

    `error` holds what our op is off by, an entry for every output, once `wrong` has run.
    """

    def __init__(self, case: Case, x: Tensors, dtype: torch.dtype) -> None:
        self.case, self.x, self.dtype = case, x, dtype
        self.n = next(v.shape[0] for k, v in x.items() if k not in SHARED)
        self.rows = _sample(case, x, self.n)
        self.few = rows_of(x, self.rows)
        self.truth = self._answer(case.oracle, _in_double(self.few))
        self.error: dict[str, float] = {}

    def wrong(self) -> dict[str, dict[str, float | None]] | None:
        """What our op is further off than it may be, with what is allowed; None if it is right."""
        plain = self._errors(self.case.oracle, self.truth)
        self.error = self._errors(self.case.ours, self.truth)
        for name, error in self._whole().items():
            self.error[name] = max(self.error[name], error)
        return beyond(self.error, plain, self.dtype) or None

    def rival(self, rival: Rival) -> dict[str, object]:
        """The errors of a rival; or why it is not timed: `wrong` or `failed`."""
        try:
            truth = self._answer(rival.oracle, _in_double(self.few)) if rival.oracle else self.truth
            found = self._errors(rival.formula, truth)
        except Exception as error:  # another package's, on a machine it may not know
            return {"failed": reason(error)}
        rough = beyond(found, dict.fromkeys(found, 1.0), self.dtype)
        return {"wrong": rough} if rough else {"error": found}

    def _run(self, formula: Formula, x: Tensors) -> tuple[Tensor, ...]:
        """Outputs as the case names them, the gradients those of the loss itself."""
        case, fresh = self.case, self.case.fresh(formula, x)
        out = case.run(formula, fresh)
        if not case.leaves:
            return out
        scale = case.scale(fresh)
        return (out[0], *(gradient.double() / scale for gradient in out[1:]))

    def _answer(self, formula: Formula, x: Tensors) -> tuple[Tensor, ...]:
        return self.case.view(x, self._run(formula, x))

    def _errors(self, formula: Formula, truth: tuple[Tensor, ...]) -> dict[str, float]:
        pairs = zip(self.case.outputs, self._answer(formula, self.few), truth, strict=True)
        return {name: relative_error(got, want) for name, got, want in pairs}

    def _whole(self) -> dict[str, float]:
        """The same rows in a run over all, where offsets and chunks are those that get timed."""
        case = self.case
        if len(self.rows) == self.n:
            return {}
        got = self._run(case.ours, self.x)
        if not case.leaves:
            some = case.view(self.few, tuple(output[self.rows] for output in got))
            return dict(zip(case.outputs, map(relative_error, some, self.truth), strict=True))
        got = case.view(self.x, got)
        share = self.n / len(self.rows)  # both losses are means over their rows
        return {
            name: relative_error(gradient[self.rows] * share, want)
            for name, gradient, want in zip(case.leaves, got[1:], self.truth[1:], strict=True)
            if name not in SHARED
        }


def _sample(case: Case, x: Tensors, n: int) -> Tensor:
    """All rows where a head's gradient sums over them, if that can be afforded in float64."""
    device = next(iter(x.values())).device
    summed = "head" in case.leaves and n * x["head"].shape[0] <= WHOLE
    if summed or n <= 3 * SAMPLE:
        return torch.arange(n, device=device)
    starts = (0, n // 2, n - SAMPLE)
    return torch.cat([torch.arange(s, s + SAMPLE, device=device) for s in starts])


def _in_double(x: Tensors) -> Tensors:
    return {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
