"""The kernel of relation_kl and attention_mse on CPU: eight rows of scores of both sides at a time.

A part of a document lies in the second cache, its keys by columns too; rows are padded to whole
vectors with zeros.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._numba import Real, array_at, block_count, dense_rows, fast, parallel, prange
from kdcache_kernels._numba_rows import LOG2_E, exp2_32, exp_part, fill, row_max
from kdcache_kernels.relation_kl._numba_grams import by_grams
from kdcache_kernels.relation_kl._numba_product import VECTOR, add_product
from kdcache_kernels.relation_kl._numba_rows import (
    load,
    load_columns,
    place,
    read_ahead,
    whole,
    zeros,
)
from kdcache_kernels.relation_kl.spec import KINDS, How, Teacher

DIVERGENCE, SCORES, PROBABILITIES = range(3)
ROWS = 8


def token_pairs(
    student: Tensor,
    student_keys: Tensor | None,
    teacher: Teacher,
    lengths: Sequence[int],
    weight: Tensor,
    how: How,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.token_pairs`, in float32, which other dtypes are cast to and from."""
    given = (student, student_keys, *teacher)
    x, y, t, u = (None if side is None else dense_rows(side.float()) for side in given)
    assert x is not None
    assert t is not None
    made = [
        empty((len(x) if need else 0, x.shape[1]), torch.float32, x.device)
        for need in (how.need_student, how.need_keys)
    ]
    d, td = x.shape[1] // how.parts, t.shape[1] // how.parts
    matrices = [number for side in (x, y, t, u, *made) for number in place(side)]
    ends, weights = np.cumsum(np.array([0, *lengths], np.int64)), weight.contiguous().numpy()
    documents: Sequence[Any] = (ends, weights, how.parts, d, td, how.scale, how.teacher_scale)
    losses = np.zeros(len(lengths) * how.parts)
    items = np.arange(losses.size)
    if how.kind == "scores":
        items = by_grams(lengths, matrices, documents, losses)
    if items.size:
        blocks, kind = block_count(items.size), KINDS.index(how.kind)
        work = torch.empty(blocks, _room(max(lengths), d, td, own=y is None))
        _all_parts(kind, items, losses, *place(work), blocks, *matrices, *documents)
    by_student, by_keys = (gradient.to(gradient_dtype(student)) for gradient in made)
    return torch.tensor(losses.sum(), dtype=torch.float32), by_student, by_keys


def _room(n: int, d: int, td: int, *, own: bool) -> int:
    """Floats that a document of `n` tokens takes."""
    n, d, td = (-(-size // VECTOR) * VECTOR for size in (n, d, td))
    return n * ((3 if own else 5) * d + 2 * td + 2 * ROWS) + 1  # and what is read ahead


@fast()
def _exponentials(x: Any) -> Real:
    """Replace a row by its exponentials below the largest; return their sum."""
    return exp_part(x, row_max(x), np.float32(1.0), False)[0]


@fast()
def _multiply(x: Any, factor: Real) -> None:
    for v in range(x.size):
        x[v] *= factor


@fast()
def _both_exponentials(x: Any, t: Any, x_top: Real, t_top: Real) -> tuple[Real, Real, Real]:
    """Replace both rows by their exponentials below `x_top` and `t_top`; return their sums, and
    that of the latter times log(t / x).
    """
    zero = np.float32(0.0)
    of_x, of_t, along, scale = zero, zero, zero, np.float32(LOG2_E)
    for v in range(x.size):
        a, b = x[v] - x_top, t[v] - t_top
        p, q = exp2_32(a * scale), exp2_32(b * scale)
        x[v], t[v] = p, q
        of_x += p
        of_t += q
        along += q * (b - a)
    return of_x, of_t, along


@fast()
def _divergence(x: Any, t: Any, w: Real) -> Real:
    """KL from softmax(t) to softmax(x) times `w`; `x` becomes its gradient."""
    of_x, of_t, along = _both_exponentials(x, t, row_max(x), row_max(t))
    a, b = np.float32(w / of_x), np.float32(w / of_t)
    for v in range(x.size):
        x[v] = x[v] * a - t[v] * b
    return w * (np.float64(along) / of_t - np.log(np.float64(of_t)) + np.log(np.float64(of_x)))


@fast()
def _apart(x: Any, t: Any) -> Real:
    """Replace `t` by x - t; return the sum of its squares."""
    total = np.float32(0.0)
    for v in range(x.size):
        e = x[v] - t[v]
        t[v] = e
        total += e * e
    return total


@fast()
def _compare(x: Any, t: Any, kind: int, w: Real) -> Real:
    """The loss of a row of scores times `w`; `x` becomes its gradient."""
    if kind == DIVERGENCE:
        return _divergence(x, t, w / x.size)
    if kind == PROBABILITIES:
        _multiply(x, np.float32(1.0) / _exponentials(x))
        _multiply(t, np.float32(1.0) / _exponentials(t))
    value, mean, factor = _apart(x, t), np.float32(0.0), np.float32(2.0 * w)
    if kind == SCORES:
        for v in range(x.size):
            x[v] = factor * t[v]
    else:
        for v in range(x.size):
            mean += x[v] * t[v]
        for v in range(x.size):
            x[v] *= factor * (t[v] - mean)
    return w * value


@parallel()
def _all_parts(
    kind: int, items: Any, losses: Any, work_at: int, work_stride: int, blocks: int,
    x_at: int, x_stride: int, y_at: int, y_stride: int,
    t_at: int, t_stride: int, u_at: int, u_stride: int,
    dx_at: int, dx_stride: int, dy_at: int, dy_stride: int,
    ends: Any, weight: Any, parts: int, d: int, td: int, scale: Real, t_scale: Real,
) -> None:  # fmt: skip
    """Fill `losses` of the `items`, parts of documents, and write the gradients."""
    own, count, line, t_line = y_at == 0, items.size, 4 * whole(d), 4 * whole(td)
    need_keys = dy_at != 0 or (own and dx_at != 0)
    for b in prange(blocks):
        last, ahead = (b + 1) * count // blocks, -1
        for at in range(b * count // blocks, last):
            item = items[at]
            doc, part = item // parts, item % parts
            column, their_column = part * d * 4, part * td * 4
            first, n, w = ends[doc], ends[doc + 1] - ends[doc], np.float64(weight[doc]) / parts
            dx, dy = dx_at + first * dx_stride + column, dy_at + first * dy_stride + column
            if w == 0.0:
                zeros(dx, dx_stride, n if dx_at != 0 else 0, d)
                zeros(dy, dy_stride, n if dy_at != 0 else 0, d)
                continue
            m = whole(n)
            xs = work_at + b * work_stride
            if doc != ahead:
                ahead, heads = doc, min(parts - part, last - at)
                read_ahead(
                    x_at, x_stride, y_at, y_stride, t_at, t_stride, u_at, u_stride,
                    dx_at, dx_stride, dy_at, dy_stride,
                    first, n, column, heads * d * 4, their_column, heads * td * 4,
                    xs + work_stride - 4,
                )  # fmt: skip
            ts, by_x = xs + m * line, xs + m * (line + t_line)
            keys, their_keys = by_x + m * line, by_x + 2 * m * line
            g = their_keys + m * t_line
            h = g + ROWS * m * 4
            # Of a document's own relations, both gradients are added up in one place.
            ys, by_y = (xs, by_x) if own else (h + ROWS * m * 4, h + ROWS * m * 4 + m * line)
            zero, one = np.float32(0.0), np.float32(1.0)
            fill(array_at(xs, (g - xs) // 4, np.float32), zero)
            if not own:
                fill(array_at(ys, m * line // 2, np.float32), zero)
            x, x_row = x_at + first * x_stride + column, x_stride
            t, t_row = t_at + first * t_stride + their_column, t_stride
            y, y_row, u, u_row = x, x_row, t, t_row
            if y_at != 0:
                y, y_row = y_at + first * y_stride + column, y_stride
            if u_at != 0:
                u, u_row = u_at + first * u_stride + their_column, u_stride
            load(x, x_row, n, d, scale, xs, line)
            load(t, t_row, n, td, t_scale, ts, t_line)
            if not own:
                load(y, y_row, n, d, scale, ys, line)
            load_columns(y, y_row, n, d, keys, m)
            load_columns(u, u_row, n, td, their_keys, m)
            total = 0.0
            for i in range(0, n, ROWS):
                rows = min(ROWS, n - i)
                fours = (rows + 3) // 4 * 4
                fill(array_at(g, 2 * ROWS * m, np.float32), zero)
                add_product(g, 4 * m, fours, m, xs + i * line, line, 4, keys, 4 * m, d)
                add_product(h, 4 * m, fours, m, ts + i * t_line, t_line, 4, their_keys, 4 * m, td)
                for r in range(rows):
                    score = array_at(g + 4 * r * m, n, np.float32)
                    theirs = array_at(h + 4 * r * m, n, np.float32)
                    total += _compare(score, theirs, kind, w)
                if need_keys:
                    add_product(by_y, line, m, line // 4, g, 4, 4 * m, xs + i * line, line, rows)
                if dx_at != 0:
                    add_product(by_x + i * line, line, fours, line // 4, g, 4 * m, 4, ys, line, n)
            losses[item] = total
            if dx_at != 0:
                load(by_x, line, n, d, one, dx, dx_stride)
            if dy_at != 0:
                load(by_y, line, n, d, one, dy, dy_stride)
