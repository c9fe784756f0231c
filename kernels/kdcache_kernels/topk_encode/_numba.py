"""topk_encode on CPU: a bound from block maxima picks few candidates, one pass sums the rest.

The row is seen as a table of BLOCKS columns. The k-th largest of the columns' maxima is at most the
k-th largest element, so only columns that reach it can hold one of the k: about k of them.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._launch import arguments, block_count, kernel
from kdcache_kernels._numba import (
    FP32,
    Real,
    array_at,
    dense_rows,
    fast,
    rows_of,
)
from kdcache_kernels._numba_rows import PIECE, copy, exponentials, fill, load_row, log_add, log_sum

HEIGHT = 16  # rows of the table
LOWEST = -0x80000000


class _Rows(NamedTuple):
    """A matrix of rows and, as addresses, what there will be of each."""

    logits: int
    stride: int
    kind: int
    n: int
    v: int
    k: int
    temperature: float
    ids: int
    logprobs: int
    tails: int
    totals: int
    blocks: int


def topk_encode(
    logits: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.topk_encode`."""
    n, v = logits.shape
    logits = dense_rows(logits)
    ids = torch.empty((n, k), dtype=torch.int64)
    logprobs = torch.empty((n, k), dtype=torch.float32)
    tails = torch.empty((2, n), dtype=torch.float32)
    totals = torch.empty(n, dtype=torch.float32)
    given = _Rows(
        *rows_of(logits),
        n,
        v,
        k,
        temperature,
        ids.data_ptr(),
        logprobs.data_ptr(),
        tails.data_ptr(),
        totals.data_ptr(),
        block_count(n),
    )
    _rows(given)
    return ids, logprobs, tails[0], tails[1], totals


@fast()
def _key(raw: Real) -> Real:
    """Bits of a float32 as an integer in its order: maxima vectorise without assuming no NaN."""
    u = np.int32(0) if raw == np.int32(LOWEST) else raw  # -0 equals 0
    return np.int32(u ^ ((u >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@fast()
def _raise(columns: Any, x: Any) -> None:
    raw = x.view(np.int32)
    for v in range(raw.size):
        columns[v] = max(columns[v], _key(raw[v]))


@fast()
def _larger(a: Any, b: Any) -> None:
    for v in range(b.size):
        a[v] = max(a[v], b[v])


@fast()
def _load(address: int, kind: int, x: Any, columns: Any) -> None:
    """Decode a row, and find the key of the largest element of every column."""
    width, item = columns.size, 4 if kind == FP32 else 2
    fill(columns, np.int32(LOWEST))
    for start in range(0, x.size, width):
        part = x[start : start + width]
        load_row(address + start * item, kind, part)
        _raise(columns, part)


@fast()
def _ranked(key: Real, v: int) -> Real:
    """Index and key as one number: less for a larger key, and among equals for a smaller index."""
    return np.int64(~key) << np.int64(32) | np.int64(v)


@fast()
def _least_first(x: Any, k: int) -> None:
    """Bring the k least to the front, in any order, the k-th of them last (Hoare 1961)."""
    low, high = 0, x.size - 1
    while low < high:
        pivot, left, right = x[(low + high) // 2], low, high
        while left <= right:
            while x[left] < pivot:
                left += 1
            while x[right] > pivot:
                right -= 1
            if left <= right:
                x[left], x[right] = x[right], x[left]
                left += 1
                right -= 1
        if k - 1 <= right:
            high = right
        elif k - 1 >= left:
            low = left
        else:
            return


@fast()
def _sort(x: Any) -> None:
    """Shell's sort (1959): those of NumPy take Numba seconds to compile."""
    gap = 1
    while 3 * gap + 1 < x.size:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, x.size):
            value, place = x[i], i
            while place >= gap and x[place - gap] > value:
                x[place] = x[place - gap]
                place -= gap
            x[place] = value
        gap //= 3


@fast()
def _candidates(x: Any, k: int, columns: Any, order: Any) -> int:
    """Fill `order` with a set, ranked, that holds the k largest; return its size."""
    width, raw = columns.size, x.view(np.int32)
    if width < 4 * k:
        for v in range(raw.size):
            order[v] = _ranked(_key(raw[v]), v)
        return int(raw.size)
    for column in range(width):
        order[column] = columns[column]
    while width >= 8 * k:  # fewer to choose from: columns by pairs, for as good a bound
        half = (width + 1) // 2
        _larger(order[: width - half], order[half:width])
        width = half
    for column in range(width):
        order[column] = ~order[column]
    _least_first(order[:width], k)
    bound = np.int32(~order[k - 1])
    count = 0
    for column in range(columns.size):
        if columns[column] >= bound:
            for v in range(column, raw.size, columns.size):
                key = _key(raw[v])
                if key >= bound:
                    order[count] = _ranked(key, v)
                    count += 1
    return count


@fast()
def _select(candidates: Any, ids: Any) -> None:
    """The largest of the candidates, as many as `ids` has room for, the largest first."""
    k = ids.size
    _least_first(candidates, k)
    _sort(candidates[:k])
    for c in range(k):
        ids[c] = candidates[c] & 0xFFFFFFFF


@fast()
def _row(
    x: Any, columns: Any, order: Any, spare: Any, temperature: Real, ids: Any, ahead: int, item: int
) -> tuple[Real, Real, Real, Any]:
    """Choose ids; return lse, lse of the rest, lse of the rest's x / T, and the k logits."""
    k = ids.size
    count = _candidates(x, k, columns, order)
    _select(order[:count], ids)
    top = np.empty(k, np.float64)
    for c in range(k):
        top[c] = x[ids[c]]
        x[ids[c]] = -np.inf
    square, apart = temperature == 2.0, temperature != 1.0 and temperature != 2.0
    sums, cold = np.empty(4, np.float64), np.empty(4, np.float64)
    for start in range(0, x.size, PIECE):
        part, other = x[start : start + PIECE], spare[start : start + PIECE]
        near = ahead + start * item
        if apart:
            copy(part, other)
        for turn in range(2 if apart else 1):  # a call is compiled where it is
            those, power, found = (other, 1.0, cold) if turn else (part, 1.0 / temperature, sums)
            exponentials(those, start == 0, power, square, found, near, near)
    rest, rest_warm = -np.inf, -np.inf
    if sums[1] != 0.0:
        rest_warm = sums[0] / temperature + np.log(sums[1])
        rest = cold[0] + np.log(cold[1]) if apart else sums[0] + np.log(sums[2 if square else 1])
    kept, _ = log_sum(top, 1.0, np.empty(k, np.float64))
    return log_add(kept, rest), rest, rest_warm, top


@kernel(_Rows)
def _rows(address: int, b: int) -> bool:
    """Fill ids and log-probabilities, both tails and the logarithm of the sum of exponentials."""
    a = arguments(address, _Rows)
    x = np.empty(a.v, np.float32)
    spare = np.empty(0 if a.temperature in (1.0, 2.0) else a.v, np.float32)
    columns = np.empty(max(a.v // HEIGHT, 1), np.int32)
    order = np.empty(a.v, np.int64)
    item = 4 if a.kind == FP32 else 2
    rest_mass = array_at(a.tails, a.n, np.float32)
    rest_stat = array_at(a.tails + 4 * a.n, a.n, np.float32)
    totals = array_at(a.totals, a.n, np.float32)
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        _load(a.logits + i * a.stride, a.kind, x, columns)
        ahead = a.logits + (i + 1) * a.stride
        ids = array_at(a.ids + 8 * i * a.k, a.k, np.int64)
        logprobs = array_at(a.logprobs + 4 * i * a.k, a.k, np.float32)
        lse, rest, warm, top = _row(x, columns, order, spare, a.temperature, ids, ahead, item)
        totals[i] = lse
        for c in range(a.k):
            logprobs[c] = top[c] - lse
        rest_mass[i] = rest - lse
        rest_stat[i] = warm - lse / a.temperature
    return True
