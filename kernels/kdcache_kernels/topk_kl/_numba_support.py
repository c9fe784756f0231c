"""The support of a row of topk_kl on CPU, and the scalars of the row that follow from it.

Letters as in `reference`. Everything is float64.
"""

from typing import Any

import numpy as np

from kdcache_kernels._numba import Real, fast
from kdcache_kernels._numba_rows import PIECE, fill, log_add, log_sum

BUCKET, _, TRUNCATE = range(3)
FORWARD, REVERSE, _ = range(3)

# Rows of the [7, K + 1] float64 work area of one row's support, whose last column is the tail.
X, LOG_P, P, LOG_Q, Q, PULL, GRAD = range(7)


@fast()
def by_piece(ids: Any, v: int, pad: int, logprobs: Any, s: Any, first: Any, after: Any) -> bool:
    """List the support of every piece, and the teacher's; False for ids out of range.

    A list begins with the column `first[piece]`, `after` each comes `after[column]`; -1 ends it.
    """
    ok = True
    for piece in range(first.size):
        first[piece] = -1
    for c in range(ids.size):
        j = ids[c]
        inside = 0 <= j < v
        s[X, c] = -np.inf
        s[LOG_P, c] = logprobs[c] if inside else -np.inf
        ok = ok and (inside or j == pad)
        if inside:
            after[c] = first[j // PIECE]
            first[j // PIECE] = c
    return ok


@fast()
def take_support(part: Any, start: int, ids: Any, s: Any, first: int, after: Any) -> bool:
    """Move the support out of the piece that begins at `start`, leaving -inf; False for repeats."""
    ok = True
    c = first
    while c >= 0:
        s[X, c] = part[ids[c] - start]
        c = after[c]
    c = first
    while c >= 0:
        j = ids[c] - start
        ok = ok and (part[j] != -np.inf or s[X, c] == -np.inf)
        part[j] = -np.inf
        c = after[c]
    return ok


@fast()
def teacher_classes(s: Any, rest: Real, temperature: Real, mode: int) -> None:
    """Turn the teacher's log-probabilities into those of its classes at this temperature."""
    k = s.shape[1] - 1
    total, base = log_sum(s[LOG_P, :k], 1.0 / temperature, s[P])
    if mode == TRUNCATE and temperature == 1.0:
        log_total = 0.0
    else:
        log_total = log_add(total, rest)
        if log_total == -np.inf:  # no teacher at all: no soft loss
            log_total = 0.0
    share = np.exp(base - log_total)
    for c in range(k):
        s[LOG_P, c] = s[LOG_P, c] / temperature - log_total
        s[P, c] *= share
    s[LOG_P, k] = rest - log_total if mode == BUCKET else -np.inf
    s[P, k] = np.exp(s[LOG_P, k])


@fast()
def _divergence(s: Any, kind: int) -> Real:
    """Sum of D over the classes; fills in q dD/dq, up to a multiple of q."""
    total = 0.0
    for c in range(s.shape[1]):
        lp, p, lq, q = s[LOG_P, c], s[P, c], s[LOG_Q, c], s[Q, c]
        if kind == FORWARD:
            total += p * (lp - lq) if p != 0.0 else 0.0
            s[PULL, c] = -p
        elif kind == REVERSE:
            s[PULL, c] = q * (lq - lp) if q != 0.0 else 0.0
            total += s[PULL, c]
        else:
            middle = np.log(p + q) - np.log(2.0)
            s[PULL, c] = 0.5 * q * (lq - middle) if q != 0.0 else 0.0
            total += s[PULL, c] + (0.5 * p * (lp - middle) if p != 0.0 else 0.0)
    return total


@fast()
def student_classes(
    s: Any, top: Real, mass: Real, temperature: Real, kind: int, factor: Real
) -> tuple[Real, Real]:
    """Return `T^2 D` and the gradient per unit of exp((x - top) / T) outside the support.

    The gradient on the support goes to the work area; both are multiplied by `factor`.
    """
    k = s.shape[1] - 1
    # The rest is summed on its own: 1 - sum(q) would cancel for a confident student.
    lse_rest = top / temperature + np.log(mass) if mass != 0.0 else -np.inf
    total, base = log_sum(s[X, :k], 1.0 / temperature, s[Q])
    lse = log_add(total, lse_rest)
    share = np.exp(base - lse)
    for c in range(k):
        s[LOG_Q, c] = s[X, c] / temperature - lse
        s[Q, c] *= share
    s[LOG_Q, k] = lse_rest - lse
    s[Q, k] = np.exp(s[LOG_Q, k])
    loss = temperature * temperature * _divergence(s, kind)
    if factor == 0.0:
        fill(s[GRAD], 0.0)
        return loss, 0.0
    pulls = 0.0
    for c in range(k + 1):
        pulls += s[PULL, c]
    for c in range(k + 1):
        s[GRAD, c] = factor * (s[PULL, c] - s[Q, c] * pulls)
    return loss, s[GRAD, k] / mass if mass != 0.0 else 0.0


@fast()
def hard_loss(s: Any, top: Real, mass: Real, x_label: Real, factor: Real) -> tuple[Real, Real]:
    """Return CE and its gradient per unit of exp(x - top); add that of the support to `s`."""
    k = s.shape[1] - 1
    lse_rest = top + np.log(mass) if mass != 0.0 else -np.inf
    total, base = log_sum(s[X, :k], 1.0, s[Q])
    lse = log_add(total, lse_rest)
    if factor == 0.0:
        return lse - x_label, 0.0
    share = factor * np.exp(base - lse)
    for c in range(k):
        s[GRAD, c] += share * s[Q, c]
    return lse - x_label, factor * np.exp(lse_rest - lse) / mass if mass != 0.0 else 0.0
