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
from kdcache_kernels._launch import arguments, block_count, kernel
from kdcache_kernels._numba import Real, array_at, dense_rows, fast
from kdcache_kernels._numba_rows import LOG2_E, exp2_32, exp_part, fill, row_max
from kdcache_kernels.relation_kl._numba_grams import by_grams
from kdcache_kernels.relation_kl._numba_product import VECTOR, add_product
from kdcache_kernels.relation_kl._numba_rows import (
    Parts,
    load,
    load_columns,
    part_of,
    place,
    read_ahead,
    sides,
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
    ends, weight = np.cumsum(np.array([0, *lengths], np.int64)), weight.contiguous()
    losses = np.zeros(len(lengths) * how.parts)
    items = np.arange(losses.size)
    parts = Parts(
        ends.ctypes.data,
        weight.data_ptr(),
        len(lengths),
        how.parts,
        d,
        td,
        how.scale,
        how.teacher_scale,
        KINDS.index(how.kind),
        losses.ctypes.data,
        *matrices,
    )
    if how.kind == "scores":
        items = by_grams(parts, lengths, weight)
    if items.size:
        blocks = block_count(items.size)
        work = torch.empty(blocks, _room(max(lengths), d, td, own=y is None))
        _some(parts.of(items, work))
    by_student, by_keys = (gradient.to(gradient_dtype(student)) for gradient in made)
    return torch.tensor(losses.sum(), dtype=torch.float32), by_student, by_keys


def _room(n: int, d: int, td: int, *, own: bool) -> int:
    """Floats that a document of `n` tokens takes."""
    n, d, td = (-(-size // VECTOR) * VECTOR for size in (n, d, td))
    return n * ((3 if own else 5) * d + 2 * td + 2 * ROWS) + 1  # and what is read ahead


@fast()
def _exponentials(x: Any) -> Real:
    """Replace a row by its exponentials below the largest; return their sum."""
    return exp_part(x, row_max(x), np.float32(1.0))


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


@kernel(Parts)
def _some(address: int, b: int) -> bool:
    """Fill `losses` of the `items`, parts of documents, and write the gradients."""
    a = arguments(address, Parts)
    items = array_at(a.items, a.size, np.int64)
    losses = array_at(a.losses, a.documents * a.parts, np.float64)
    own, count, line, t_line = a.y_at == 0, a.size, 4 * whole(a.d), 4 * whole(a.td)
    need_keys = a.dy_at != 0 or (own and a.dx_at != 0)
    last, ahead = (b + 1) * count // a.blocks, -1
    for at in range(b * count // a.blocks, last):
        item = items[at]
        doc, part, first, n, w = part_of(a, item)
        column, their_column = part * a.d * 4, part * a.td * 4
        dx, dy = a.dx_at + first * a.dx_stride + column, a.dy_at + first * a.dy_stride + column
        if w == 0.0:
            zeros(dx, a.dx_stride, n if a.dx_at != 0 else 0, a.d)
            zeros(dy, a.dy_stride, n if a.dy_at != 0 else 0, a.d)
            continue
        m = whole(n)
        xs = a.work_at + b * a.work_stride
        if doc != ahead:
            ahead, heads = doc, min(a.parts - part, last - at)
            read_ahead(a, first, n, column, their_column, heads, xs + a.work_stride - 4)
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
        (x, x_row, y, y_row), (t, t_row, u, u_row) = sides(a, first, column, their_column)
        load(x, x_row, n, a.d, a.scale, xs, line)
        load(t, t_row, n, a.td, a.t_scale, ts, t_line)
        if not own:
            load(y, y_row, n, a.d, a.scale, ys, line)
        load_columns(y, y_row, n, a.d, keys, m)
        load_columns(u, u_row, n, a.td, their_keys, m)
        total = 0.0
        for i in range(0, n, ROWS):
            rows = min(ROWS, n - i)
            fours = (rows + 3) // 4 * 4
            fill(array_at(g, 2 * ROWS * m, np.float32), zero)
            add_product(g, 4 * m, fours, m, xs + i * line, line, 4, keys, 4 * m, a.d)
            add_product(h, 4 * m, fours, m, ts + i * t_line, t_line, 4, their_keys, 4 * m, a.td)
            for r in range(rows):
                score = array_at(g + 4 * r * m, n, np.float32)
                theirs = array_at(h + 4 * r * m, n, np.float32)
                total += _compare(score, theirs, a.kind, w)
            if need_keys:
                add_product(by_y, line, m, line // 4, g, 4, 4 * m, xs + i * line, line, rows)
            if a.dx_at != 0:
                add_product(by_x + i * line, line, fours, line // 4, g, 4 * m, 4, ys, line, n)
        losses[item] = total
        if a.dx_at != 0:
            load(by_x, line, n, a.d, one, dx, a.dx_stride)
        if a.dy_at != 0:
            load(by_y, line, n, a.d, one, dy, a.dy_stride)
    return True
