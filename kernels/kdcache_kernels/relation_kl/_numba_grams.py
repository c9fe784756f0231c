"""The kernel of attention_mse of scores on CPU where documents are longer than heads are wide.

All differences of scores are one product of narrow matrices, E F^T. The sum of their squares and
its gradients need products of columns with columns, and no scores:

    |E F^T|^2 = sum (E^T E) * (F^T F),    (E F^T) Y = E (F^T Y),    (E F^T)^T X = F (E^T X)

Heads as wide as the teacher's are told by what sets them apart, E = [X - T, T] and F = [Y, Y - U]:
a student near its teacher loses no digits. Other heads are E = [X, -T] and F = [Y, U].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdcache_kernels._numba import Real, array_at, block_count, fast, parallel, prange
from kdcache_kernels._numba_rows import fill
from kdcache_kernels.relation_kl._numba_product import VECTOR, add_product, turn
from kdcache_kernels.relation_kl._numba_rows import load, place, read_ahead, whole

LONG = 1.3  # times the columns of both sides: documents from which on this is faster
LEAST = 0.02  # of the terms that the sum is made of; below, too many of their digits cancel
PIECE = 64  # tokens whose vectors stay in the first cache
SQUARE = 16  # columns: of what is symmetric, squares below the diagonal are copied
APART = 64  # bytes between rows of whole lines, which would all fall on few places of a cache


def by_grams(
    lengths: Sequence[int], matrices: Sequence[int], documents: Sequence[Any], losses: Any
) -> Any:
    """Fill `losses` of the parts of long documents, and write their gradients; the parts that are
    left, of short documents, of those without weight and of those whose sums cancel, are returned.
    """
    _, weight, parts, d, td, *_ = documents
    fit = (np.array(lengths) >= LONG * (d + td)) & (weight != 0)
    items = np.flatnonzero(np.repeat(fit, parts))
    done = np.zeros(losses.size, np.bool_)
    if items.size:
        blocks = block_count(items.size)
        work = torch.empty(blocks, _room(max(lengths), d, td))
        _all_grams(items, losses, done, *place(work), blocks, *matrices, *documents)
    return np.flatnonzero(~done)


def _room(n: int, d: int, td: int) -> int:
    """Floats that a document of `n` tokens takes."""
    n, d, td = (-(-size // VECTOR) * VECTOR for size in (n, d, td))
    return 2 * n * (d + td + APART // 4) + 2 * (d + td) ** 2 + PIECE * d + 1  # what is read ahead


@fast()
def _load_apart(
    x_at: int, x_stride: int, t_at: int, t_stride: int, n: int, d: int,
    factor: Real, t_factor: Real, apart: int, theirs: int, line: int,
) -> None:  # fmt: skip
    """Write rows of X - T at `apart`, and of T at `theirs`, each times its factor."""
    a, b = np.float32(factor), np.float32(t_factor)
    for i in range(n):
        x = array_at(x_at + i * x_stride, d, np.float32)
        t = array_at(t_at + i * t_stride, d, np.float32)
        difference = array_at(apart + i * line, d, np.float32)
        itself = array_at(theirs + i * line, d, np.float32)
        for c in range(d):
            difference[c] = a * (x[c] - t[c])
        for c in range(d):
            itself[c] = b * t[c]


@fast()
def _add_gram(e: int, line: int, n: int, out: int, out_line: int) -> None:
    """Add E^T E of `n` rows; squares of columns below the diagonal are left out."""
    columns = out_line // 4
    for r in range(0, columns, SQUARE):
        at, rows = out + r * out_line + 4 * r, min(SQUARE, columns - r)
        add_product(at, out_line, rows, columns - r, e + 4 * r, 4, line, e + 4 * r, line, n)


@fast()
def _mirror(at: int, line: int) -> None:
    """Copy what `_add_gram` left out."""
    for i in range(4 * SQUARE, line, 4 * VECTOR):
        for c in range(0, i // (4 * SQUARE) * 4 * SQUARE, 4 * VECTOR):
            turn(at + c // 4 * line + i, line, at + i // 4 * line + c, line)


@fast()
def _along(x: Any, y: Any, size: int, first: int, last: int, top: int, end: int) -> Real:
    """The sum of x * y over rows from `first` to `last` and columns from `top` to `end`."""
    total = np.float64(0.0)
    for i in range(first, last):
        part = np.float32(0.0)
        for c in range(i * size + top, i * size + end):
            part += x[c] * y[c]
        total += part
    return total


@fast()
def _add_gradient(e: int, line: int, n: int, by: int, by_line: int, out: int, width: int) -> None:
    """Add E times the first `width` bytes of the rows of a square matrix."""
    fours = (n + 3) // 4 * 4
    add_product(out, width, fours, width // 4, e, line, 4, by, by_line, by_line // 4)


@parallel()
def _all_grams(
    items: Any, losses: Any, done: Any, work_at: int, work_stride: int, blocks: int,
    x_at: int, x_stride: int, y_at: int, y_stride: int,
    t_at: int, t_stride: int, u_at: int, u_stride: int,
    dx_at: int, dx_stride: int, dy_at: int, dy_stride: int,
    ends: Any, weight: Any, parts: int, d: int, td: int, scale: Real, t_scale: Real,
) -> None:  # fmt: skip
    """Fill `losses` and gradients of the `items` whose sums keep their digits: they are `done`."""
    own, count, wide = y_at == 0, items.size, whole(d)
    columns, near, width = wide + whole(td), d == td, 4 * wide
    small, line = 4 * columns, 4 * columns + APART
    for b in prange(blocks):
        ee_at = work_at + b * work_stride
        ff_at = ee_at + columns * small
        by_at = ff_at + columns * small
        e_at = by_at + PIECE * width
        zero, one = np.float32(0.0), np.float32(1.0)
        ee = array_at(ee_at, columns * columns, np.float32)
        ff = array_at(ff_at, columns * columns, np.float32)
        by = array_at(by_at, PIECE * wide, np.float32)
        last, ahead = (b + 1) * count // blocks, -1
        for at in range(b * count // blocks, last):
            item = items[at]
            doc, part = item // parts, item % parts
            column, their_column = part * d * 4, part * td * 4
            first, n, w = ends[doc], ends[doc + 1] - ends[doc], np.float64(weight[doc]) / parts
            if doc != ahead:
                ahead, heads = doc, min(parts - part, last - at)
                read_ahead(
                    x_at, x_stride, y_at, y_stride, t_at, t_stride, u_at, u_stride,
                    dx_at, dx_stride, dy_at, dy_stride,
                    first, n, column, heads * d * 4, their_column, heads * td * 4,
                    ee_at + work_stride - 4,
                )  # fmt: skip
            x, x_row = x_at + first * x_stride + column, x_stride
            t, t_row = t_at + first * t_stride + their_column, t_stride
            y, y_row, u, u_row = x, x_row, t, t_row
            if not own:
                y, y_row = y_at + first * y_stride + column, y_stride
                u, u_row = u_at + first * u_stride + their_column, u_stride
            f_at = e_at + whole(n) * line
            fill(array_at(ee_at, 2 * columns * columns, np.float32), zero)
            if wide != d or wide + td != columns or n % 4:
                fill(array_at(e_at, whole(n) * line // 2, np.float32), zero)
            for i in range(0, n, PIECE):
                rows, e, f = min(PIECE, n - i), e_at + i * line, f_at + i * line
                xi, ti, yi, ui = x + i * x_row, t + i * t_row, y + i * y_row, u + i * u_row
                if near:
                    _load_apart(xi, x_row, ti, t_row, rows, d, scale, scale, e, e + width, line)
                    _load_apart(ui, u_row, yi, y_row, rows, d, -one, one, f + width, f, line)
                else:
                    load(xi, x_row, rows, d, scale, e, line)
                    load(ti, t_row, rows, td, -t_scale, e + width, line)
                    load(yi, y_row, rows, d, one, f, line)
                    load(ui, u_row, rows, td, one, f + width, line)
                _add_gram(e, line, rows, ee_at, small)
                _add_gram(f, line, rows, ff_at, small)
            _mirror(ee_at, small)
            _mirror(ff_at, small)
            terms = _along(ee, ff, columns, 0, wide, 0, wide)
            terms += _along(ee, ff, columns, wide, columns, wide, columns)
            total = terms + 2.0 * _along(ee, ff, columns, 0, wide, wide, columns)
            if total < LEAST * terms:
                continue
            losses[item], done[item] = w * total, True
            by_x, by_y = np.float32(2.0 * w * scale), np.float32(2.0 * w)
            for r in range(columns):
                for c in range(r * columns, r * columns + wide):
                    ff[c] *= by_x
                    ee[c] = by_y * (ee[c] + ee[c + wide] if near else ee[c])
            for i in range(0, n, PIECE):
                rows, e, f = min(PIECE, n - i), e_at + i * line, f_at + i * line
                if dx_at != 0:
                    fill(by, zero)
                    _add_gradient(e, line, rows, ff_at, small, by_at, width)
                    if own:
                        _add_gradient(f, line, rows, ee_at, small, by_at, width)
                    out = dx_at + (first + i) * dx_stride + column
                    load(by_at, width, rows, d, one, out, dx_stride)
                if dy_at != 0:
                    fill(by, zero)
                    _add_gradient(f, line, rows, ee_at, small, by_at, width)
                    out = dy_at + (first + i) * dy_stride + column
                    load(by_at, width, rows, d, one, out, dy_stride)
