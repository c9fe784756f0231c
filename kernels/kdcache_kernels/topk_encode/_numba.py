"""topk_encode on CPU: a bound from block maxima picks few candidates, one pass sums the rest.

The row is seen as a table of BLOCKS columns. The k-th largest of the columns' maxima is at most the
k-th largest element, so only columns that reach it can hold one of the k: about k of them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._numba import (
    FP32,
    Real,
    block_count,
    dense_rows,
    fast,
    parallel,
    prange,
    rows_of,
)
from kdcache_kernels._numba_rows import PIECE, copy, exponentials, fill, load_row, log_add, log_sum

HEIGHT = 16  # rows of the table
LOWEST = -0x80000000


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
    _all_rows(
        *rows_of(logits),
        v,
        temperature,
        ids.numpy(),
        logprobs.numpy(),
        tails.numpy(),
        totals.numpy(),
        block_count(n),
    )
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
    square = temperature == 2.0
    sums, cold = np.empty(3, np.float64), np.empty(3, np.float64)
    for start in range(0, x.size, PIECE):
        part, other = x[start : start + PIECE], spare[start : start + PIECE]
        near = ahead + start * item
        if not square:
            copy(part, other)
            exponentials(other, start == 0, 1.0, False, cold, near, near)
        exponentials(part, start == 0, 1.0 / temperature, square, sums, near, near)
    high, warm = sums[0], sums[1]
    mass = sums[2] if square else cold[1]
    rest, rest_warm = -np.inf, -np.inf
    if mass != 0.0:
        rest = high + np.log(mass)
        rest_warm = high / temperature + np.log(warm)
    kept, _ = log_sum(top, 1.0, np.empty(k, np.float64))
    return log_add(kept, rest), rest, rest_warm, top


@parallel()
def _all_rows(
    logits: int,
    stride: int,
    kind: int,
    v: int,
    temperature: Real,
    ids: Any,
    logprobs: Any,
    tails: Any,
    totals: Any,
    blocks: int,
) -> None:
    n, k = ids.shape
    for b in prange(blocks):
        x = np.empty(v, np.float32)
        spare = np.empty(0 if temperature == 2.0 else v, np.float32)
        columns = np.empty(max(v // HEIGHT, 1), np.int32)
        order = np.empty(v, np.int64)
        item = 4 if kind == FP32 else 2
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            _load(logits + i * stride, kind, x, columns)
            ahead = logits + (i + 1) * stride
            lse, rest, warm, top = _row(x, columns, order, spare, temperature, ids[i], ahead, item)
            totals[i] = lse
            for c in range(k):
                logprobs[i, c] = top[c] - lse
            tails[0, i] = rest - lse
            tails[1, i] = warm - lse / temperature
