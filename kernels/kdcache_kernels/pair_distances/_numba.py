"""Angles of pair_distances on CPU: no cosine is in memory, and blocks of corners are threads'."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._launch import arguments, block_count, kernel, same_blocks
from kdcache_kernels._numba import Real, array_at, fast


class _Squares(NamedTuple):
    """Addresses of rows and of what there will be of all pairs."""

    x: int
    square: int
    n: int
    h: int
    blocks: int


def pair_squares(x: Tensor) -> Tensor:
    """As `reference.pair_squares`: torch.cdist takes ten times as long."""
    x = x.contiguous()
    square = torch.empty(len(x), len(x), dtype=torch.float64)
    given = x.data_ptr(), square.data_ptr(), *x.shape, block_count(len(x))
    _all_squares(_Squares(*given))
    return square


@fast()
def _apart(x: Any, y: Any) -> Real:
    total = 0.0
    for v in range(x.size):
        off = np.float64(x[v]) - np.float64(y[v])
        total += off * off
    return total


@kernel(_Squares)
def _all_squares(address: int, b: int) -> bool:
    """Fill the squared distances of the rows of every block from all rows."""
    a = arguments(address, _Squares)
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        row = array_at(a.x + 4 * i * a.h, a.h, np.float32)
        out = array_at(a.square + 8 * i * a.n, a.n, np.float64)
        for j in range(a.n):
            out[j] = _apart(row, array_at(a.x + 4 * j * a.h, a.h, np.float32))
    return True


class _Corners(NamedTuple):
    """Addresses of squared distances, of the rows' shares, and of slopes and losses of blocks."""

    ours: int
    theirs: int
    share: int
    slopes: int
    losses: int
    n: int
    blocks: int


def pair_angles(
    share: Tensor, ours: Tensor, theirs: Tensor, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.pair_angles`."""
    n = len(share)
    ours, theirs, share = ours.contiguous(), theirs.contiguous(), share.contiguous()
    blocks = same_blocks(n)
    slopes = torch.zeros(blocks, n, n)
    losses = torch.zeros(blocks, dtype=torch.float64)
    given = _Corners(
        ours.data_ptr(),
        theirs.data_ptr(),
        share.data_ptr(),
        slopes.data_ptr(),
        losses.data_ptr(),
        n,
        blocks,
    )
    _all_corners(given)
    slope = slopes.sum(0)
    return losses.sum().float(), slope if need_grad else slope[:0]


@fast()
def _inverse(squares: Any, out: Any) -> None:
    """One over the distances, and 1 for none."""
    for j in range(out.size):
        out[j] = np.float32(1.0 / np.sqrt(squares[j])) if squares[j] > 0 else np.float32(1.0)


@fast()
def _between(
    here: Real,
    there: Real,
    from_i: Any,
    from_j: Any,
    inverse: Any,
    its_from_i: Any,
    its_from_j: Any,
    its_inverse: Any,
    share: Any,
    factor: Real,
    its_factor: Real,
    count: Real,
    slope: Any,
) -> tuple[Real, Real, Real]:
    """All triangles of a corner i and a row j: subtracts from the slope [B] of the sides opposite.

    Returns the loss, and the sums of the slopes by the side between i and j, and by its direction.
    """
    loss, sides, turned = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for k in range(slope.size):
        by = factor * inverse[k]
        cosine = np.float32(here + from_i[k] - from_j[k]) * by
        its_opposite = np.float32(there + its_from_i[k] - its_from_j[k])
        off = cosine - its_opposite * (its_factor * its_inverse[k])
        near = min(max(off, np.float32(-1.0)), np.float32(1.0))
        loss += share[k] * (near * (off - np.float32(0.5) * near))
        step = count * share[k] * near
        slope[k] -= step * by
        sides += step * by
        turned += step * cosine
    return loss, sides, turned


@kernel(_Corners)
def _all_corners(address: int, b: int) -> bool:
    """Fill the slopes and the loss of every block of corners."""
    a = arguments(address, _Corners)
    shares = array_at(a.share, a.n, np.float32)
    inverse = np.empty(a.n, np.float32)
    its_inverse = np.empty(a.n, np.float32)
    loss = 0.0
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        from_i = array_at(a.ours + 8 * i * a.n, a.n, np.float64)
        its_from_i = array_at(a.theirs + 8 * i * a.n, a.n, np.float64)
        own = array_at(a.slopes + 4 * (b * a.n + i) * a.n, a.n, np.float32)
        _inverse(from_i, inverse)
        _inverse(its_from_i, its_inverse)
        for j in range(a.n):
            count = shares[i] * shares[j]
            if count == 0.0:
                continue
            part, sides, turned = _between(
                from_i[j],
                its_from_i[j],
                from_i,
                array_at(a.ours + 8 * j * a.n, a.n, np.float64),
                inverse,
                its_from_i,
                array_at(a.theirs + 8 * j * a.n, a.n, np.float64),
                its_inverse,
                shares,
                np.float32(0.5) * inverse[j],
                np.float32(0.5) * its_inverse[j],
                count,
                array_at(a.slopes + 4 * (b * a.n + j) * a.n, a.n, np.float32),
            )
            loss += np.float64(count) * np.float64(part)
            own[j] += np.float32(2.0) * sides
            if from_i[j] > 0:
                own[j] -= np.float32(turned / from_i[j])
    array_at(a.losses + 8 * b, 1, np.float64)[0] = loss
    return True
