"""pair_distances in plain torch, on any device and in float64 too: the oracle of the kernel.

Letters: B rows; S [B, B] squared distances. A slope is the derivative of a loss by the student's S.
"""

import torch
from torch import Tensor

CHUNK = 2**22
"""Triangles that exist at once."""


def safe(length: Tensor) -> Tensor:
    """What to divide by: lengths, and 1 where there is none."""
    return torch.where(length > 0, length, 1.0)


def pair_squares(x: Tensor) -> Tensor:
    """S of vectors [B, H] in float64, of differences: that of equal ones is 0.

    Sides of a triangle cancel in its cosines: where two rows are almost equal, to nothing that
    float32 tells from noise.
    """
    x = x.double()
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()


def relative_distances(ours: Tensor, theirs: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and slope [B, B] of distances over their mean, of `share` [B], which sums to 1."""
    pairs = share[:, None] * share
    distance, mean, counted = _mean_distance(ours, pairs)
    other, its_mean, _ = _mean_distance(theirs, pairs)
    off = distance / safe(mean) - other / safe(its_mean)
    step = pairs * off.clamp(-1, 1)
    by_mean = torch.where(mean > 0, (step * distance).sum() / (safe(mean).square() * counted), 0.0)
    slope = (step / safe(mean) - by_mean * pairs) / (2 * safe(distance))
    return (pairs * _smooth(off)).sum(), torch.where(distance > 0, slope, 0.0)


def _mean_distance(square: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    distance = square.sqrt()
    counted = safe((pairs * (distance > 0)).sum())
    return distance, (pairs * distance).sum() / counted, counted


def _smooth(off: Tensor) -> Tensor:
    """Smooth L1 with beta 1."""
    near = off.clamp(-1, 1)
    return near * (off - 0.5 * near)


def pair_angles(
    share: Tensor, ours: Tensor, theirs: Tensor, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """Loss and slope [B, B], or empty, of the cosines at every row between every two."""
    loss, n = share.new_zeros(()), len(share)
    slope = share.new_zeros(ours.shape)
    corners = max(1, CHUNK // max(1, n * n))
    for at in range(0, n, corners):
        i = slice(at, at + corners)
        (cosines, inverse), (others, _) = (_cosines(s, i, share.dtype) for s in (ours, theirs))
        off = cosines - others
        triples = share[i, None, None] * share[:, None] * share
        loss = loss + (triples * _smooth(off)).sum()
        if need_grad:
            step = triples * off.clamp(-1, 1)
            by_square = step * inverse
            slope -= by_square.sum(0)
            turned = torch.where(ours[i] > 0, (step * cosines).sum(2) / safe(ours[i]), 0.0)
            slope[i] += 2 * by_square.sum(2) - turned.to(slope.dtype)
    return loss, slope if need_grad else slope[:0]


def _cosines(square: Tensor, i: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines [corners, B, B] by the sides of triangles; and 1 / 2 of the adjacent sides."""
    side = safe(square[i].sqrt()).to(dtype)
    inverse = 0.5 / (side[:, :, None] * side[:, None])
    return (square[i, :, None] + square[i, None] - square).to(dtype) * inverse, inverse
