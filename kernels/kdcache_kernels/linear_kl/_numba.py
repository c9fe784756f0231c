"""The row kernel of linear_kl on CPU: both rows stay in cache, the gradient replaces the student's.

Beside two matrix products a row, its few passes hardly count; so they are kept simple.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._launch import arguments, block_count, kernel
from kdcache_kernels._numba import Real, array_at, fast, rows_of
from kdcache_kernels._numba_rows import PIECE, copy, exp_part, fill, pieces, row_max
from kdcache_kernels.linear_kl.spec import Spec
from kdcache_kernels.topk_kl.spec import DIVERGENCES

FORWARD, REVERSE, JS = range(3)
NEAR = 0.09


class _Rows(NamedTuple):
    """Matrices of rows and what is known of each, addresses of which 0 are those of none."""

    student: int
    stride: int
    other: int
    other_stride: int
    n: int
    v: int
    weight: int
    labels: int
    ignore: int
    temperature: float
    kind: int
    soft_weight: float
    hard_weight: float
    losses: int
    blocks: int


def dense_kl(
    logits: Tensor,
    teacher: Tensor,
    teacher_bias: Tensor | None,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.dense_kl`, for float32; overwrites `logits` and `teacher` in any case."""
    n, v = logits.shape
    if teacher_bias is not None:
        teacher.add_(teacher_bias)
    weight, labels = weight.contiguous(), None if labels is None else labels.contiguous()
    losses = torch.zeros(3, n, dtype=torch.float64)
    given = _Rows(
        *rows_of(logits)[:2],
        *rows_of(teacher)[:2],
        n,
        v,
        weight.data_ptr(),
        0 if labels is None else labels.data_ptr(),
        spec.ignore_index,
        spec.temperature,
        DIVERGENCES.index(spec.divergence),
        spec.soft_weight,
        spec.hard_weight,
        losses.data_ptr(),
        block_count(n),
    )
    _rows(given)
    return losses[0].sum().float(), losses[1].float(), losses[2].float()


@fast()
def _lower(x: Any, top: Real) -> None:
    """Subtract `top` in place: fast-math would postpone it until digits are lost."""
    for v in range(x.size):
        x[v] -= top


@fast()
def _difference(x: Any, t: Any, factor: Real, out: Any) -> None:
    for v in range(out.size):
        out[v] = (t[v] - x[v]) * factor


@fast()
def _dot(mass: Any, d: Any) -> Real:
    """Sum of mass * d, where a mass of 0 counts nothing even if d is infinite."""
    total = np.float32(0.0)
    for v in range(d.size):
        total += mass[v] * d[v] if mass[v] != np.float32(0.0) else np.float32(0.0)
    return total


@fast()
def _softmax(x: Any, t: Any, d: Any, factor: Real, kind: int, sums: Any) -> None:
    """Replace `x` and `t` by their exponentials below the largest, `d` by the latter's difference.

    `sums`: of x, of t, and of t * d or x * d, whichever the divergence needs.
    """
    _lower(x, row_max(x))
    _lower(t, row_max(t))
    fill(sums, 0.0)
    for piece in range(pieces(x.size)):
        part = slice(piece * PIECE, (piece + 1) * PIECE)
        _difference(x[part], t[part], factor, d[part])
        sums[0] += exp_part(x[part], np.float32(0.0), factor)
        sums[1] += exp_part(t[part], np.float32(0.0), factor)
        if kind == FORWARD:
            sums[2] += _dot(t[part], d[part])
        elif kind == REVERSE:
            sums[2] += _dot(x[part], d[part])


@fast()
def _log_of_larger(high: Real, low: Real) -> Real:
    """log(high / m) for the mean m of both, within 2e-7 of itself; NaN if both are 0.

    It lies in [0, log 2]: the logarithm is 2 artanh(z), z <= 1/3, and the polynomial that of
    (artanh(z) / z - 1) / z^2, within 2e-8 of the whole.
    """
    z = (high - low) / (np.float32(3.0) * high + low)
    s = z * z
    series = np.float32(0.13425749)
    series = series * s + np.float32(0.1411831)
    series = series * s + np.float32(0.2000378)
    series = series * s + np.float32(0.3333332)
    return np.float32(2.0) * (z + z * s * series)


@fast()
def _js_near(s: Real) -> Real:
    """Both terms of JS over m, for p = m (1 + r), q = m (1 - r) and s = r^2 <= NEAR, within 6e-8.

    They are s / 2 + s^2 / 12 + s^3 / 30 and so on. As a sum of two logarithms terms of the order
    of r would cancel, and the rounding of p and q would stay.
    """
    series = np.float32(0.01946807)
    series = series * s + np.float32(0.03327787)
    series = series * s + np.float32(0.08333361)
    return s * (np.float32(0.5) + s * series)


@fast()
def _js_part(x: Any, t: Any, d: Any, to_q: Real, to_p: Real, logs: Real) -> tuple[Real, Real]:
    """Sums of the terms of JS and of u over a short part; `t` becomes u.

    u = q log(q / m) / 2, m the mixture. Of p and q the smaller one's log is the larger one's less
    how far they are apart, which is known: one logarithm of a small range does for both.
    """
    zero, half = np.float32(0.0), np.float32(0.5)
    total, pulls = zero, zero
    for v in range(x.size):
        q, p, apart = x[v] * to_q, t[v] * to_p, d[v] - logs
        high, low = (p, q) if p > q else (q, p)
        log = _log_of_larger(high, low)
        u = half * q * (log - (apart if apart > zero else zero)) if q != zero else zero
        other = half * p * (log + (apart if apart < zero else zero)) if p != zero else zero
        r = (high - low) / (high + low)
        near = half * (high + low) * _js_near(r * r)
        t[v] = u
        pulls += u
        total += near if r * r <= np.float32(NEAR) else u + other
    return total, pulls


@fast()
def _js(x: Any, t: Any, d: Any, of_x: Real, of_t: Real, logs: Real, a: Real) -> Real:
    """Sum of the terms of JS; `x` becomes a (u - q sum u)."""
    to_q, to_p = np.float32(1.0 / of_x), np.float32(1.0 / of_t)
    total, pulls = 0.0, 0.0
    for piece in range(pieces(x.size)):
        part = slice(piece * PIECE, (piece + 1) * PIECE)
        both = _js_part(x[part], t[part], d[part], to_q, to_p, np.float32(logs))
        total += both[0]
        pulls += both[1]
    _forward_gradient(x, t, np.float32(-a * pulls / of_x), np.float32(-a))
    return total


@fast()
def _forward_gradient(x: Any, t: Any, of_x: Real, of_t: Real) -> None:
    for v in range(x.size):
        x[v] = x[v] * of_x - t[v] * of_t


@fast()
def _reverse_gradient(x: Any, d: Any, mean: Real, factor: Real) -> None:
    for v in range(x.size):
        x[v] *= (mean - d[v]) * factor if x[v] != np.float32(0.0) else np.float32(0.0)


@fast()
def _soft(x: Any, t: Any, d: Any, temperature: Real, kind: int, factor: Real, sums: Any) -> Real:
    """Return `T^2 D` and replace `x` by its gradient times `factor`; destroy `t` and `d`."""
    _softmax(x, t, d, np.float32(1.0 / temperature), kind, sums)
    of_x, of_t, a = sums[0], sums[1], factor * temperature
    logs = np.log(of_t) - np.log(of_x)  # log p - log q is d - logs
    if kind == FORWARD:
        value = sums[2] / of_t - logs
        _forward_gradient(x, t, np.float32(a / of_x), np.float32(a / of_t))
    elif kind == REVERSE:
        mean = sums[2] / of_x
        value = logs - mean
        _reverse_gradient(x, d, np.float32(mean), np.float32(a / of_x))
    else:
        value = _js(x, t, d, of_x, of_t, logs, a)
    return temperature * temperature * value


@fast()
def _hard(cold: Any, y: int, factor: Real) -> Real:
    """Return CE of label `y` and replace `cold` by its gradient times `factor`."""
    top, x_label, total = row_max(cold), np.float64(cold[y]), 0.0
    for piece in range(pieces(cold.size)):
        part = slice(piece * PIECE, (piece + 1) * PIECE)
        total += exp_part(cold[part], top, np.float32(1.0))
    scale = np.float32(factor / total)
    for v in range(cold.size):
        cold[v] *= scale
    cold[y] -= factor
    return np.log(total) + top - x_label


@fast()
def _add(x: Any, y: Any) -> None:
    for v in range(x.size):
        x[v] += y[v]


@kernel(_Rows)
def _rows(address: int, b: int) -> bool:
    """Put the gradient over `student` and fill `losses`: each, `T^2 D` and `CE` of all rows."""
    a = arguments(address, _Rows)
    d = np.empty(a.v, np.float32)
    cold = np.empty(a.v, np.float32)
    sums = np.empty(3, np.float64)
    weights = array_at(a.weight, a.n, np.float32)
    targets = array_at(a.labels, a.n, np.int64)
    each = array_at(a.losses, a.n, np.float64)
    each_soft = array_at(a.losses + 8 * a.n, a.n, np.float64)
    each_hard = array_at(a.losses + 16 * a.n, a.n, np.float64)
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        x = array_at(a.student + i * a.stride, a.v, np.float32)
        t = array_at(a.other + i * a.other_stride, a.v, np.float32)
        w, y = np.float64(weights[i]), targets[i] if a.labels != 0 else a.ignore
        if w == 0.0:
            fill(x, np.float32(0.0))
            continue
        if y != a.ignore:
            copy(x, cold)
        each_soft[i] = _soft(x, t, d, a.temperature, a.kind, w * a.soft_weight, sums)
        each[i] = w * a.soft_weight * each_soft[i] if a.soft_weight != 0.0 else 0.0
        if a.soft_weight == 0.0:
            fill(x, np.float32(0.0))  # an infinite divergence leaves NaN
        if y == a.ignore:
            continue
        each_hard[i] = _hard(cold, y, w * a.hard_weight) if 0 <= y < a.v else np.nan
        if a.hard_weight != 0.0:
            each[i] += w * a.hard_weight * each_hard[i]
            if 0 <= y < a.v:
                _add(x, cold)
            else:
                fill(x, np.float32(np.nan))
    return True
