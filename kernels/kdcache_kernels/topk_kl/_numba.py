"""topk_kl on CPU: one row at a time through the cache, rows shared among threads.

The row is read once, kept in a float32 scratch of V elements, and its gradient written once.
Float16 gradients are float32 (see `gradient_dtype`), so only bfloat16 is ever rounded here.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._numba import (
    Real,
    bits,
    exp_row,
    fast,
    get_num_threads,
    gradient_buffer,
    load_row,
    prange,
    store_row,
    zero_row,
)

MODES = {"bucket": 0, "renormalize": 1, "truncate": 2}
BUCKET, TRUNCATE = 0, 2

# Rows of the [5, K] float64 work area of one row's support.
X, LOG_P, P, LOG_Q, GRAD = range(5)


def topk_kl(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    tail: Tensor | None,
    weight: Tensor,
    labels: Tensor | None,
    temperature: float,
    mode: str,
    soft_weight: float,
    hard_weight: float,
    ignore_index: int,
    need_grad: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], bool]:
    """Return the outputs of the op, and whether some row's ids or labels are wrong."""
    n, v = logits.shape
    flat, stride, kind = bits(logits)
    gradient, out32, out16 = gradient_buffer(n if need_grad else 0, v, gradient_dtype(logits))
    pad = 65535 if ids.dtype == torch.uint16 and v < 65536 else -1
    rows = torch.zeros(3, n, dtype=torch.float64)
    bad = np.zeros(n, np.bool_)
    _all_rows(
        flat,
        stride,
        kind,
        v,
        ids.to(torch.int64).contiguous().numpy(),
        pad,
        logprobs.float().contiguous().numpy(),
        np.full(n, -np.inf, np.float32) if tail is None else tail.float().contiguous().numpy(),
        weight.contiguous().numpy(),
        np.full(n, ignore_index) if labels is None else labels.contiguous().numpy(),
        ignore_index,
        temperature,
        MODES[mode],
        soft_weight,
        hard_weight,
        need_grad,
        out32,
        out16,
        rows.numpy(),
        bad,
        max(1, min(n, 4 * get_num_threads())),
    )
    soft, hard = rows[1].float(), rows[2].float()
    return (rows[0].sum().float(), gradient, soft, hard), bool(bad.any())


@fast()
def _take_support(scratch: Any, ids: Any, pad: int, logprobs: Any, s: Any) -> bool:
    """Move the support out of `scratch`, leaving -inf; False for ids out of range or repeated."""
    ok = True
    for c in range(ids.size):
        j = ids[c]
        inside = 0 <= j < scratch.size
        s[X, c] = scratch[j] if inside else -np.inf
        s[LOG_P, c] = logprobs[c] if inside else -np.inf
        ok = ok and (inside or j == pad)
    for c in range(ids.size):
        j = ids[c]
        if 0 <= j < scratch.size:
            ok = ok and (scratch[j] != -np.inf or s[X, c] == -np.inf)
            scratch[j] = -np.inf
    return ok


@fast()
def _log_sum(x: Any, scale: Real) -> Real:
    """log sum exp(x * scale) of a short float64 row; -inf if all of it is."""
    top = -np.inf
    for c in range(x.size):
        top = x[c] if x[c] > top else top
    shift = 0.0 if top == -np.inf else top
    total = 0.0
    for c in range(x.size):
        total += np.exp((x[c] - shift) * scale)
    return shift * scale + np.log(total)


@fast()
def _log_add(a: Real, b: Real) -> Real:
    low, high = (a, b) if a < b else (b, a)
    return high if low == -np.inf else high + np.log1p(np.exp(low - high))


@fast()
def _teacher(s: Any, rest: Real, temperature: Real, mode: int) -> Real:
    """Fill the teacher's half of the work area; return log p of the tail class."""
    log_total = 0.0
    if mode != TRUNCATE or temperature != 1.0:
        log_total = _log_add(_log_sum(s[LOG_P], 1.0 / temperature), rest)
        if log_total == -np.inf:  # no teacher at all: no soft loss
            log_total = 0.0
    for c in range(s.shape[1]):
        s[LOG_P, c] = s[LOG_P, c] / temperature - log_total
        s[P, c] = np.exp(s[LOG_P, c])
    return rest - log_total if mode == BUCKET else -np.inf


@fast()
def _student(
    s: Any, top: Real, mass: Real, lp_tail: Real, temperature: Real, factor: Real
) -> tuple[Real, Real]:
    """Return `T^2 KL` and the gradient per unit of exp((x - top) / T) outside the support.

    The gradient on the support goes to the work area; both are multiplied by `factor`.
    """
    # The rest is summed on its own: 1 - sum(q) would cancel for a confident student.
    lse_rest = top / temperature + np.log(mass) if mass != 0.0 else -np.inf
    lse = _log_add(_log_sum(s[X], 1.0 / temperature), lse_rest)
    p_tail = np.exp(lp_tail)
    kl = p_tail * (lp_tail - (lse_rest - lse)) if p_tail != 0.0 else 0.0
    total = p_tail
    for c in range(s.shape[1]):
        s[LOG_Q, c] = s[X, c] / temperature - lse
        kl += s[P, c] * (s[LOG_P, c] - s[LOG_Q, c]) if s[P, c] != 0.0 else 0.0
        total += s[P, c]
    if factor == 0.0:
        s[GRAD] = 0.0
        return temperature * temperature * kl, 0.0
    for c in range(s.shape[1]):
        s[GRAD, c] = factor * (total * np.exp(s[LOG_Q, c]) - s[P, c])
    inside = factor * (total * np.exp(lse_rest - lse) - p_tail) / mass if mass != 0.0 else 0.0
    return temperature * temperature * kl, inside


@fast()
def _hard(s: Any, top: Real, mass: Real, x_label: Real, factor: Real) -> tuple[Real, Real]:
    """Return CE and its gradient per unit of exp(x - top); add that of the support to `s`."""
    lse_rest = top + np.log(mass) if mass != 0.0 else -np.inf
    lse = _log_add(_log_sum(s[X], 1.0), lse_rest)
    if factor == 0.0:
        return lse - x_label, 0.0
    for c in range(s.shape[1]):
        s[GRAD, c] += factor * np.exp(s[X, c] - lse)
    return lse - x_label, factor * np.exp(lse_rest - lse) / mass if mass != 0.0 else 0.0


@fast()
def _scale(x: Any, factor: Real) -> None:
    for v in range(x.size):
        x[v] *= factor


@fast()
def _blend(x: Any, a: Real, y: Any, b: Real) -> None:
    for v in range(x.size):
        x[v] = a * x[v] + b * y[v]


@fast(parallel=True)
def _all_rows(
    flat: Any,
    stride: int,
    kind: int,
    v: int,
    ids: Any,
    pad: int,
    logprobs: Any,
    tail: Any,
    weight: Any,
    labels: Any,
    ignore: int,
    temperature: Real,
    mode: int,
    soft_weight: Real,
    hard_weight: Real,
    need_grad: bool,
    out32: Any,
    out16: Any,
    rows: Any,
    bad: Any,
    blocks: int,
) -> None:
    """Fill gradient, `rows` (loss, T^2 KL, CE) and `bad`; letters as in `reference`."""
    n, k = ids.shape
    for b in prange(blocks):
        scratch = np.empty(v, np.float32)
        second = np.empty(v if temperature != 1.0 else 0, np.float32)
        support = np.empty((5, k), np.float64)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            w = np.float64(weight[i])
            if w == 0.0:
                if need_grad:
                    zero_row(out32, out16, i, v)
                continue
            load_row(flat, i * stride, kind, scratch)
            y = labels[i]
            has_label = y != ignore
            label_ok = has_label and 0 <= y < v
            x_label = np.float64(scratch[y]) if label_ok else np.nan
            ids_ok = _take_support(scratch, ids[i], pad, logprobs[i], support)
            bad[i] = not ids_ok or (has_label and not label_ok)
            lp_tail = _teacher(support, tail[i], temperature, mode)
            tempered = has_label and temperature != 1.0
            top, cold = 0.0, 0.0
            if tempered:
                second[:] = scratch
                top, cold = exp_row(second, 1.0)
            top, mass = exp_row(scratch, 1.0 / temperature)
            factor = soft_weight * w * temperature
            soft, inside = _student(support, top, mass, lp_tail, temperature, factor)
            if not ids_ok:
                soft = np.nan
                inside = np.nan
            rows[1, i] = soft
            rows[0, i] = w * soft_weight * soft if soft_weight != 0.0 else 0.0
            inside2 = 0.0
            if has_label:
                if not tempered:
                    cold = mass
                hard, inside2 = _hard(support, top, cold, x_label, w * hard_weight)
                if not label_ok and hard_weight != 0.0:
                    inside2 = np.nan
                rows[2, i] = hard
                if hard_weight != 0.0:
                    rows[0, i] += w * hard_weight * hard
            if need_grad:
                if tempered:
                    _blend(scratch, np.float32(inside), second, np.float32(inside2))
                else:
                    _scale(scratch, np.float32(inside + inside2))
                for c in range(k):
                    j = ids[i, c]
                    if 0 <= j < v:
                        scratch[j] = support[GRAD, c]
                if label_ok:
                    scratch[y] -= w * hard_weight
                store_row(scratch, out32, out16, i)
