"""topk_kl on CPU: one row at a time through the cache, rows shared among threads.

A row is copied once into its place in the gradient (or a scratch row), where every later pass finds
it in cache: the support is taken out, the rest is replaced by its exponentials a piece at a time,
and those are scaled into the gradient.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._numba import (
    FP32,
    PIECE,
    Real,
    array_at,
    block_count,
    clear,
    dense_rows,
    exponentials,
    fast,
    load_row,
    log_add,
    log_sum,
    pieces,
    prange,
    round_row,
    rows_of,
)
from kdcache_kernels.topk_kl import reference
from kdcache_kernels.topk_kl.spec import DIVERGENCES, TAILS, Spec, Teacher

BUCKET, _, TRUNCATE = range(3)
FORWARD, REVERSE, _ = range(3)

# Rows of the [5, K + 1] float64 work area of one row's support, whose last column is the tail.
X, LOG_P, LOG_Q, PULL, GRAD = range(5)


def topk_kl(
    logits: Tensor,
    teacher: Teacher,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    out: Tensor | None,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.topk_kl`; `out` is float32 or bfloat16."""
    n, v = logits.shape
    logits = dense_rows(logits)
    ids = teacher.ids
    pad = 65535 if ids.dtype == torch.uint16 and v < 65536 else -1
    rest = teacher.rest
    rows = torch.zeros(3, n, dtype=torch.float64)
    bad = np.zeros(n, np.bool_)
    _all_rows(
        *rows_of(logits),
        *rows_of(out),
        v,
        ids.to(torch.int64).contiguous().numpy(),
        pad,
        teacher.logprobs.float().contiguous().numpy(),
        np.full(n, -np.inf, np.float32) if rest is None else rest.float().contiguous().numpy(),
        weight.contiguous().numpy(),
        np.full(n, spec.ignore_index) if labels is None else labels.contiguous().numpy(),
        spec.ignore_index,
        spec.temperature,
        TAILS.index(spec.tail),
        DIVERGENCES.index(spec.divergence),
        spec.soft_weight,
        spec.hard_weight,
        rows.numpy(),
        bad,
        block_count(n),
    )
    if check and bad.any():
        reference.check_ids(logits, ids, labels, weight, spec.ignore_index)
    return rows[0].sum().float(), rows[1].float(), rows[2].float()


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
def _teacher(s: Any, rest: Real, temperature: Real, mode: int) -> None:
    """Turn the teacher's log-probabilities into those of its classes at this temperature."""
    k = s.shape[1] - 1
    log_total = 0.0
    if mode != TRUNCATE or temperature != 1.0:
        log_total = log_add(log_sum(s[LOG_P, :k], 1.0 / temperature), rest)
        if log_total == -np.inf:  # no teacher at all: no soft loss
            log_total = 0.0
    for c in range(k):
        s[LOG_P, c] = s[LOG_P, c] / temperature - log_total
    s[LOG_P, k] = rest - log_total if mode == BUCKET else -np.inf


@fast()
def _divergence(s: Any, kind: int) -> Real:
    """Sum of D over the classes; fills in q dD/dq, up to a multiple of q."""
    total = 0.0
    for c in range(s.shape[1]):
        lp, lq = s[LOG_P, c], s[LOG_Q, c]
        p, q = np.exp(lp), np.exp(lq)
        if kind == FORWARD:
            total += p * (lp - lq) if p != 0.0 else 0.0
            s[PULL, c] = -p
        elif kind == REVERSE:
            s[PULL, c] = q * (lq - lp) if q != 0.0 else 0.0
            total += s[PULL, c]
        else:
            middle = log_add(lp, lq) - np.log(2.0)
            s[PULL, c] = 0.5 * q * (lq - middle) if q != 0.0 else 0.0
            total += s[PULL, c] + (0.5 * p * (lp - middle) if p != 0.0 else 0.0)
    return total


@fast()
def _student(
    s: Any, top: Real, mass: Real, temperature: Real, kind: int, factor: Real
) -> tuple[Real, Real]:
    """Return `T^2 D` and the gradient per unit of exp((x - top) / T) outside the support.

    The gradient on the support goes to the work area; both are multiplied by `factor`.
    """
    k = s.shape[1] - 1
    # The rest is summed on its own: 1 - sum(q) would cancel for a confident student.
    lse_rest = top / temperature + np.log(mass) if mass != 0.0 else -np.inf
    lse = log_add(log_sum(s[X, :k], 1.0 / temperature), lse_rest)
    for c in range(k):
        s[LOG_Q, c] = s[X, c] / temperature - lse
    s[LOG_Q, k] = lse_rest - lse
    loss = temperature * temperature * _divergence(s, kind)
    if factor == 0.0:
        s[GRAD] = 0.0
        return loss, 0.0
    total = 0.0
    for c in range(k + 1):
        total += s[PULL, c]
    for c in range(k + 1):
        s[GRAD, c] = factor * (s[PULL, c] - np.exp(s[LOG_Q, c]) * total)
    return loss, s[GRAD, k] / mass if mass != 0.0 else 0.0


@fast()
def _hard(s: Any, top: Real, mass: Real, x_label: Real, factor: Real) -> tuple[Real, Real]:
    """Return CE and its gradient per unit of exp(x - top); add that of the support to `s`."""
    k = s.shape[1] - 1
    lse_rest = top + np.log(mass) if mass != 0.0 else -np.inf
    lse = log_add(log_sum(s[X, :k], 1.0), lse_rest)
    if factor == 0.0:
        return lse - x_label, 0.0
    for c in range(k):
        s[GRAD, c] += factor * np.exp(s[X, c] - lse)
    return lse - x_label, factor * np.exp(lse_rest - lse) / mass if mass != 0.0 else 0.0


@fast()
def _to_gradient(x: Any, tops: Any, top: Real, scale: Real, a: Real, square: Real) -> None:
    """Multiply the exponentials, rebased to `top`, by `a`; add `square` times their square."""
    for piece in range(tops.size):
        part = x[piece * PIECE : (piece + 1) * PIECE]
        shrink = np.exp(np.float64(tops[piece] - top) * scale) if tops[piece] != -np.inf else 0.0
        one, two = np.float32(a * shrink), np.float32(square * shrink * shrink)
        if two == 0.0:
            for v in range(part.size):
                part[v] *= one
        else:
            for v in range(part.size):
                part[v] = part[v] * (one + two * part[v])


@fast()
def _add(x: Any, y: Any) -> None:
    for v in range(x.size):
        x[v] += y[v]


@fast(parallel=True)
def _all_rows(
    logits: int,
    stride: int,
    kind: int,
    gradient: int,
    out_stride: int,
    out_kind: int,
    v: int,
    ids: Any,
    pad: int,
    logprobs: Any,
    rest: Any,
    weight: Any,
    labels: Any,
    ignore: int,
    temperature: Real,
    mode: int,
    divergence: int,
    soft_weight: Real,
    hard_weight: Real,
    rows: Any,
    bad: Any,
    blocks: int,
) -> None:
    """Fill gradient, `rows` (loss, T^2 D, CE) and `bad`; letters as in `reference`."""
    n, k = ids.shape
    for b in prange(blocks):
        direct = gradient != 0 and out_kind == FP32
        scratch = np.empty(0 if direct else v, np.float32)
        second = np.empty(v if temperature != 1.0 and temperature != 2.0 else 0, np.float32)
        support = np.empty((5, k + 1), np.float64)
        tops = np.empty(pieces(v), np.float32)
        tops2 = np.empty(pieces(v), np.float32)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            out = gradient + i * out_stride
            w = np.float64(weight[i])
            if w == 0.0:
                if gradient != 0:
                    clear(out, (4 if direct else 2) * v)
                continue
            x = array_at(out, v, np.float32) if direct else scratch
            if not (direct and kind == FP32 and gradient == logits):
                load_row(logits + i * stride, kind, x)
            y = labels[i]
            has_label = y != ignore
            label_ok = has_label and 0 <= y < v
            x_label = np.float64(x[y]) if label_ok else np.nan
            ids_ok = _take_support(x, ids[i], pad, logprobs[i], support)
            bad[i] = not ids_ok or (has_label and not label_ok)
            _teacher(support, rest[i], temperature, mode)
            separate = has_label and second.size > 0
            top2, cold = 0.0, 0.0
            if separate:
                second[:] = x
                top2, cold, _ = exponentials(second, 1.0, False, tops2)
            scale = 1.0 / temperature
            square = has_label and temperature == 2.0
            top, mass, squares = exponentials(x, scale, square, tops)
            factor = soft_weight * w * temperature
            soft, inside = _student(support, top, mass, temperature, divergence, factor)
            if not ids_ok:
                soft = np.nan
                inside = np.nan
            rows[1, i] = soft
            rows[0, i] = w * soft_weight * soft if soft_weight != 0.0 else 0.0
            outside = 0.0
            if has_label:
                if not separate:
                    top2, cold = top, squares if square else mass
                hard, outside = _hard(support, top2, cold, x_label, w * hard_weight)
                if not label_ok and hard_weight != 0.0:
                    outside = np.nan
                rows[2, i] = hard
                if hard_weight != 0.0:
                    rows[0, i] += w * hard_weight * hard
            if gradient != 0:
                cold_too = 0.0 if separate or square else outside
                squared = outside if square else 0.0
                _to_gradient(x, tops, top, scale, inside + cold_too, squared)
                if separate:
                    _to_gradient(second, tops2, top2, 1.0, outside, 0.0)
                    _add(x, second)
                for c in range(k):
                    j = ids[i, c]
                    if 0 <= j < v:
                        x[j] = support[GRAD, c]
                if label_ok:
                    x[y] -= w * hard_weight
                if not direct:
                    round_row(x, array_at(out, v, np.uint16))
