"""Angles of pair_distances on CPU: no cosine is in memory, and blocks of corners are threads'."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._numba import Real, array_at, block_count, fast, parallel, prange, same_blocks


def pair_squares(x: Tensor) -> Tensor:
    """As `reference.pair_squares`: torch.cdist takes ten times as long."""
    x = x.contiguous()
    square = torch.empty(len(x), len(x), dtype=torch.float64)
    _all_squares(x.data_ptr(), square.data_ptr(), len(x), x.shape[1], block_count(len(x)))
    return square


@fast()
def _apart(x: Any, y: Any) -> Real:
    total = 0.0
    for v in range(x.size):
        off = np.float64(x[v]) - np.float64(y[v])
        total += off * off
    return total


@parallel()
def _all_squares(x: int, square: int, n: int, h: int, blocks: int) -> None:
    """Fill the squared distances of the rows of every block from all rows."""
    for b in prange(blocks):
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            row = array_at(x + 4 * i * h, h, np.float32)
            out = array_at(square + 8 * i * n, n, np.float64)
            for j in range(n):
                out[j] = _apart(row, array_at(x + 4 * j * h, h, np.float32))


def pair_angles(
    share: Tensor, ours: Tensor, theirs: Tensor, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.pair_angles`."""
    n = len(share)
    ours, theirs, share = ours.contiguous(), theirs.contiguous(), share.contiguous()
    blocks = same_blocks(n)
    slopes = torch.zeros(blocks, n, n)
    losses = torch.zeros(blocks, dtype=torch.float64)
    _all_corners(
        ours.data_ptr(),
        theirs.data_ptr(),
        share.data_ptr(),
        slopes.data_ptr(),
        losses.data_ptr(),
        n,
        blocks,
    )
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


@parallel()
def _all_corners(
    ours: int, theirs: int, share: int, slopes: int, losses: int, n: int, blocks: int
) -> None:
    """Fill the slopes and the loss of every block of corners; arrays come as their addresses."""
    for b in prange(blocks):
        shares = array_at(share, n, np.float32)
        inverse = np.empty(n, np.float32)
        its_inverse = np.empty(n, np.float32)
        loss = 0.0
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            from_i = array_at(ours + 8 * i * n, n, np.float64)
            its_from_i = array_at(theirs + 8 * i * n, n, np.float64)
            own = array_at(slopes + 4 * (b * n + i) * n, n, np.float32)
            _inverse(from_i, inverse)
            _inverse(its_from_i, its_inverse)
            for j in range(n):
                count = shares[i] * shares[j]
                if count == 0.0:
                    continue
                part, sides, turned = _between(
                    from_i[j],
                    its_from_i[j],
                    from_i,
                    array_at(ours + 8 * j * n, n, np.float64),
                    inverse,
                    its_from_i,
                    array_at(theirs + 8 * j * n, n, np.float64),
                    its_inverse,
                    shares,
                    np.float32(0.5) * inverse[j],
                    np.float32(0.5) * its_inverse[j],
                    count,
                    array_at(slopes + 4 * (b * n + j) * n, n, np.float32),
                )
                loss += np.float64(count) * np.float64(part)
                own[j] += np.float32(2.0) * sides
                if from_i[j] > 0:
                    own[j] -= np.float32(turned / from_i[j])
        array_at(losses + 8 * b, 1, np.float64)[0] = loss
