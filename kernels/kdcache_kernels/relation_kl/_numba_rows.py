"""Rows of vectors on their way into the caches and out again, for the kernels between tokens.

A head's columns of a document are short runs of many rows, which processors do not see coming; so a
document is read through once before its heads are, and then lies in a cache.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kdcache_kernels._numba import Real, array_at, fast
from kdcache_kernels._numba_rows import fill
from kdcache_kernels.relation_kl._numba_product import VECTOR, turn

KEPT = 2**22  # bytes of a document that are read ahead; a longer one would not stay in a cache


class Parts(NamedTuple):
    """Parts of documents: what is of all, both sides and their gradients, and which are asked for.

    All matrices and small arrays are addresses, 0 for none; strides are bytes.
    """

    ends: int
    weight: int
    documents: int
    parts: int
    d: int
    td: int
    scale: float
    t_scale: float
    kind: int
    losses: int
    x_at: int
    x_stride: int
    y_at: int
    y_stride: int
    t_at: int
    t_stride: int
    u_at: int
    u_stride: int
    dx_at: int
    dx_stride: int
    dy_at: int
    dy_stride: int
    items: int = 0
    size: int = 0
    done: int = 0
    work_at: int = 0
    work_stride: int = 0
    blocks: int = 0

    def of(
        self,
        items: npt.NDArray[np.int64],
        work: Tensor,
        done: npt.NDArray[np.bool_] | None = None,
    ) -> "Parts":
        """The parts of these numbers, with a row to work on for every block."""
        return self._replace(
            items=items.ctypes.data,
            size=items.size,
            done=0 if done is None else done.ctypes.data,
            work_at=work.data_ptr(),
            work_stride=work.stride(0) * 4,
            blocks=len(work),
        )


def place(x: Tensor | None) -> tuple[int, int]:
    """Address of a matrix and bytes from row to row; address 0 for none."""
    return (0, 0) if x is None or not len(x) else (x.data_ptr(), x.stride(0) * 4)


@fast()
def whole(n: int) -> int:
    """`n`, or what whole vectors have."""
    return (n + VECTOR - 1) // VECTOR * VECTOR


@fast()
def _read(start: int, stride: int, first: int, n: int, column: int, size: int) -> Real:
    """The sum of `size` bytes of each of `n` rows; 0 of no matrix."""
    total = np.float32(0.0)
    if start != 0:
        for i in range(first, first + n):
            row = array_at(start + i * stride + column, size // 4, np.float32)
            for c in range(row.size):
                total += row[c]
    return total


@fast()
def part_of(a: Any, item: int) -> tuple[int, int, int, int, Real]:
    """Document and part of an item of `Parts`, the document's first token, tokens and weight."""
    doc, part = item // a.parts, item % a.parts
    ends = array_at(a.ends, a.documents + 1, np.int64)
    weight = array_at(a.weight, a.documents, np.float32)
    return doc, part, ends[doc], ends[doc + 1] - ends[doc], np.float64(weight[doc]) / a.parts


@fast()
def sides(a: Any, first: int, column: int, their_column: int) -> Any:
    """Addresses and strides of the student's rows and keys, and of the teacher's, from a token on.

    Without keys the rows themselves are keys.
    """
    x, t = a.x_at + first * a.x_stride + column, a.t_at + first * a.t_stride + their_column
    y, y_row, u, u_row = x, a.x_stride, t, a.t_stride
    if a.y_at != 0:
        y, y_row = a.y_at + first * a.y_stride + column, a.y_stride
    if a.u_at != 0:
        u, u_row = a.u_at + first * a.u_stride + their_column, a.u_stride
    return (x, a.x_stride, y, y_row), (t, a.t_stride, u, u_row)


@fast()
def read_ahead(
    a: Any, first: int, n: int, column: int, their_column: int, heads: int, sink: int
) -> None:
    """Read what a document has of all sides in some heads, unless it is too much."""
    width, their_width = heads * a.d * 4, heads * a.td * 4
    if 4 * n * width + 2 * n * their_width > KEPT:
        return
    total = _read(a.x_at, a.x_stride, first, n, column, width)
    total += _read(a.y_at, a.y_stride, first, n, column, width)
    total += _read(a.t_at, a.t_stride, first, n, their_column, their_width)
    total += _read(a.u_at, a.u_stride, first, n, their_column, their_width)
    total += _read(a.dx_at, a.dx_stride, first, n, column, width)
    total += _read(a.dy_at, a.dy_stride, first, n, column, width)
    array_at(sink, 1, np.float32)[0] = total  # which nobody reads, or there would be no reading


@fast()
def load(at: int, stride: int, n: int, d: int, scale: Real, out: int, out_stride: int) -> None:
    """Copy the `n` rows of a matrix, times `scale`."""
    factor = np.float32(scale)
    for i in range(n):
        row = array_at(at + i * stride, d, np.float32)
        line = array_at(out + i * out_stride, d, np.float32)
        for c in range(d):
            line[c] = row[c] * factor


@fast()
def zeros(at: int, stride: int, n: int, d: int) -> None:
    """Set `n` rows to zero."""
    for i in range(n):
        fill(array_at(at + i * stride, d, np.float32), np.float32(0.0))


@fast()
def load_columns(at: int, stride: int, n: int, d: int, out: int, m: int) -> None:
    """Copy the `n` rows of a matrix as columns of one of rows of `m`."""
    columns = array_at(out, d * m, np.float32)
    rows, wide = n // VECTOR * VECTOR, d // VECTOR * VECTOR
    for i in range(0, rows, VECTOR):
        for c in range(0, wide, VECTOR):
            turn(at + i * stride + 4 * c, stride, out + 4 * (c * m + i), 4 * m)
    for i in range(n):
        row = array_at(at + i * stride, d, np.float32)
        for c in range(wide if i < rows else 0, d):
            columns[c * m + i] = row[c]
