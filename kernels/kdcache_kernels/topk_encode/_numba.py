"""topk_encode on CPU: a bound from block maxima picks few candidates, one pass sums the rest.

The row is seen as a table of BLOCKS columns. The k-th largest of the columns' maxima is at most the
k-th largest element, so only columns that reach it can hold one of the k: about k of them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._numba import (
    Real,
    block_count,
    copy,
    dense_rows,
    exponentials,
    fast,
    load_row,
    log_add,
    log_sum,
    parallel,
    pieces,
    prange,
    rows_of,
)

HEIGHT = 16  # rows of the table


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
def _ordered(x: Any, keys: Any) -> None:
    """Integers in the order of the floats, so that maxima vectorise without assuming no NaN."""
    raw = x.view(np.int32)
    for v in range(raw.size):
        u = np.int32(0) if raw[v] == np.int32(-0x80000000) else raw[v]  # -0 equals 0
        keys[v] = u ^ ((u >> np.int32(31)) & np.int32(0x7FFFFFFF))


@fast()
def _larger(a: Any, b: Any) -> None:
    for v in range(b.size):
        a[v] = max(a[v], b[v])


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
def _candidates(keys: Any, k: int, columns: Any, order: Any) -> int:
    """Fill `order` with a set, ranked, that holds the k largest; return its size."""
    width = columns.size
    if width < 4 * k:
        for v in range(keys.size):
            order[v] = _ranked(keys[v], v)
        return int(keys.size)
    copy(keys[:width], columns)
    for start in range(width, keys.size, width):
        _larger(columns, keys[start : start + width])
    for column in range(width):
        order[column] = ~columns[column]
    _least_first(order[:width], k)
    bound = np.int32(~order[k - 1])
    count = 0
    for column in range(width):
        if columns[column] >= bound:
            for v in range(column, keys.size, width):
                if keys[v] >= bound:
                    order[count] = _ranked(keys[v], v)
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
    x: Any, keys: Any, columns: Any, order: Any, tops: Any, spare: Any, temperature: Real, ids: Any
) -> tuple[Real, Real, Real, Any]:
    """Choose ids; return lse, lse of the rest, lse of the rest's x / T, and the k logits."""
    k = ids.size
    _ordered(x, keys)
    count = _candidates(keys, k, columns, order)
    _select(order[:count], ids)
    top = np.empty(k, np.float64)
    for c in range(k):
        top[c] = x[ids[c]]
        x[ids[c]] = -np.inf
    if temperature == 2.0:
        high, warm, mass = exponentials(x, 0.5, True, tops)
    else:
        copy(x, spare)
        high, warm, _ = exponentials(spare, 1.0 / temperature, False, tops)
        high, mass, _ = exponentials(x, 1.0, False, tops)
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
        keys = np.empty(v, np.int32)
        columns = np.empty(v // HEIGHT, np.int32)
        order = np.empty(v, np.int64)
        tops = np.empty(pieces(v), np.float32)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            load_row(logits + i * stride, kind, x)
            lse, rest, warm, top = _row(x, keys, columns, order, tops, spare, temperature, ids[i])
            totals[i] = lse
            for c in range(k):
                logprobs[i, c] = top[c] - lse
            tails[0, i] = rest - lse
            tails[1, i] = warm - lse / temperature
