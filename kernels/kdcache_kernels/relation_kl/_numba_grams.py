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
import numpy.typing as npt
import torch
from torch import Tensor

from kdcache_kernels._launch import arguments, block_count, kernel
from kdcache_kernels._numba import Real, array_at, fast
from kdcache_kernels._numba_rows import fill
from kdcache_kernels.relation_kl._numba_product import VECTOR, add_product, turn
from kdcache_kernels.relation_kl._numba_rows import Parts, load, part_of, read_ahead, sides, whole

LONG = 1.3  # times the columns of both sides: documents from which on this is faster
LEAST = 0.02  # of the terms that the sum is made of; below, too many of their digits cancel
PIECE = 64  # tokens whose vectors stay in the first cache
SQUARE = 16  # columns: of what is symmetric, squares below the diagonal are copied
APART = 64  # bytes between rows of whole lines, which would all fall on few places of a cache


def by_grams(given: Parts, lengths: Sequence[int], weight: Tensor) -> npt.NDArray[np.int64]:
    """Fill the losses of the parts of long documents, and write their gradients; the parts that are
    left, of short documents, of those without weight and of those whose sums cancel, are returned.
    """
    fit = (np.array(lengths) >= LONG * (given.d + given.td)) & (weight.numpy() != 0)
    items = np.flatnonzero(np.repeat(fit, given.parts))
    done = np.zeros(len(lengths) * given.parts, np.bool_)
    if items.size:
        work = torch.empty(block_count(items.size), _room(max(lengths), given.d, given.td))
        _some(given.of(items, work, done))
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


@kernel(Parts)
def _some(address: int, b: int) -> bool:
    """Fill `losses` and gradients of the `items` whose sums keep their digits: they are `done`."""
    a = arguments(address, Parts)
    items = array_at(a.items, a.size, np.int64)
    losses = array_at(a.losses, a.documents * a.parts, np.float64)
    done = array_at(a.done, a.documents * a.parts, np.bool_)
    own, count, wide = a.y_at == 0, a.size, whole(a.d)
    columns, near, width = wide + whole(a.td), a.d == a.td, 4 * wide
    small, line = 4 * columns, 4 * columns + APART
    ee_at = a.work_at + b * a.work_stride
    ff_at = ee_at + columns * small
    by_at = ff_at + columns * small
    e_at = by_at + PIECE * width
    zero, one = np.float32(0.0), np.float32(1.0)
    ee = array_at(ee_at, columns * columns, np.float32)
    ff = array_at(ff_at, columns * columns, np.float32)
    by = array_at(by_at, PIECE * wide, np.float32)
    last, ahead = (b + 1) * count // a.blocks, -1
    for at in range(b * count // a.blocks, last):
        item = items[at]
        doc, part, first, n, w = part_of(a, item)
        column, their_column = part * a.d * 4, part * a.td * 4
        if doc != ahead:
            ahead, heads = doc, min(a.parts - part, last - at)
            read_ahead(a, first, n, column, their_column, heads, ee_at + a.work_stride - 4)
        (x, x_row, y, y_row), (t, t_row, u, u_row) = sides(a, first, column, their_column)
        f_at = e_at + whole(n) * line
        fill(array_at(ee_at, 2 * columns * columns, np.float32), zero)
        if wide != a.d or wide + a.td != columns or n % 4:
            fill(array_at(e_at, whole(n) * line // 2, np.float32), zero)
        for i in range(0, n, PIECE):
            rows, e, f = min(PIECE, n - i), e_at + i * line, f_at + i * line
            xi, ti, yi, ui = x + i * x_row, t + i * t_row, y + i * y_row, u + i * u_row
            if near:
                _load_apart(xi, x_row, ti, t_row, rows, a.d, a.scale, a.scale, e, e + width, line)
                _load_apart(ui, u_row, yi, y_row, rows, a.d, -one, one, f + width, f, line)
            else:
                load(xi, x_row, rows, a.d, a.scale, e, line)
                load(ti, t_row, rows, a.td, -a.t_scale, e + width, line)
                load(yi, y_row, rows, a.d, one, f, line)
                load(ui, u_row, rows, a.td, one, f + width, line)
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
        by_x, by_y = np.float32(2.0 * w * a.scale), np.float32(2.0 * w)
        for r in range(columns):
            for c in range(r * columns, r * columns + wide):
                ff[c] *= by_x
                ee[c] = by_y * (ee[c] + ee[c + wide] if near else ee[c])
        for i in range(0, n, PIECE):
            rows, e, f = min(PIECE, n - i), e_at + i * line, f_at + i * line
            if a.dx_at != 0:
                fill(by, zero)
                _add_gradient(e, line, rows, ff_at, small, by_at, width)
                if own:
                    _add_gradient(f, line, rows, ee_at, small, by_at, width)
                out = a.dx_at + (first + i) * a.dx_stride + column
                load(by_at, width, rows, a.d, one, out, a.dx_stride)
            if a.dy_at != 0:
                fill(by, zero)
                _add_gradient(f, line, rows, ee_at, small, by_at, width)
                out = a.dy_at + (first + i) * a.dy_stride + column
                load(by_at, width, rows, a.d, one, out, a.dy_stride)
    return True
