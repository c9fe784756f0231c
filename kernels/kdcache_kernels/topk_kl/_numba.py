"""topk_kl on CPU: one row at a time through the cache, rows shared among threads.

A row is taken a piece at a time: copied into its place in the gradient (or a scratch row), its
support taken out, the rest replaced by its exponentials, while the next piece is on its way from
memory. Then the exponentials, which lie in cache, are scaled into the gradient.
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
from kdcache_kernels._numba_rows import (
    PIECE,
    clear,
    copy,
    exponentials,
    load_row,
    pieces,
    round_row,
    row_sum,
)
from kdcache_kernels.topk_kl import reference
from kdcache_kernels.topk_kl._numba_support import (
    GRAD,
    by_piece,
    hard_loss,
    student_classes,
    take_support,
    teacher_classes,
)
from kdcache_kernels.topk_kl.spec import DIVERGENCES, TAILS, Spec, Teacher


class _Rows(NamedTuple):
    """Matrices of rows and what is known of each, addresses of which 0 are those of none."""

    logits: int
    stride: int
    kind: int
    gradient: int
    out_stride: int
    out_kind: int
    n: int
    v: int
    ids: int
    k: int
    pad: int
    logprobs: int
    rest: int
    weight: int
    labels: int
    ignore: int
    temperature: float
    mode: int
    divergence: int
    soft_weight: float
    hard_weight: float
    losses: int
    soft_rows: int
    hard_rows: int
    loss: int
    bad: int
    blocks: int


def topk_kl(
    logits: Tensor,
    teacher: Teacher,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    out: Tensor | None,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.topk_kl`; `out` is float32 or bfloat16."""
    n, v = logits.shape
    logits = dense_rows(logits)
    pad = 65535 if teacher.ids.dtype == torch.uint16 and v < 65536 else -1
    ids = teacher.ids.to(torch.int64).contiguous()
    logprobs = teacher.logprobs.float().contiguous()
    rest = None if teacher.rest is None else teacher.rest.float().contiguous()
    weight, labels = weight.contiguous(), None if labels is None else labels.contiguous()
    losses = torch.empty(n, dtype=torch.float64)
    loss, soft, hard = torch.empty(()), torch.zeros(n), torch.zeros(n)
    bad = torch.empty(n, dtype=torch.bool)
    given = _Rows(
        *rows_of(logits),
        *rows_of(out),
        n,
        v,
        ids.data_ptr(),
        ids.shape[1],
        pad,
        logprobs.data_ptr(),
        0 if rest is None else rest.data_ptr(),
        weight.data_ptr(),
        0 if labels is None else labels.data_ptr(),
        spec.ignore_index,
        spec.temperature,
        TAILS.index(spec.tail),
        DIVERGENCES.index(spec.divergence),
        spec.soft_weight,
        spec.hard_weight,
        losses.data_ptr(),
        soft.data_ptr(),
        hard.data_ptr(),
        loss.data_ptr(),
        bad.data_ptr(),
        block_count(n),
    )
    if _rows(given) > 1 and check:
        reference.check_ids(logits, teacher.ids, labels, weight, spec.ignore_index)
    return loss, soft, hard


@fast()
def _to_gradient(x: Any, tops: Any, top: Real, scale: Real, a: Real, square: Real) -> None:
    """Multiply the exponentials, rebased to `top`, by `a`; add `square` times their square."""
    for piece in range(tops.size):
        part = x[piece * PIECE : (piece + 1) * PIECE]
        shrink = np.exp((tops[piece] - top) * scale) if tops[piece] != -np.inf else 0.0
        one, two = np.float32(a * shrink), np.float32(square * shrink * shrink)
        if two == 0.0:
            for v in range(part.size):
                part[v] *= one
        else:
            for v in range(part.size):
                part[v] = part[v] * (one + two * part[v])


@fast()
def _add(x: Any, y: Any) -> None:
    for v in range(x.size):
        x[v] += y[v]


@kernel(_Rows, sums=True)
def _rows(address: int, b: int) -> int:
    """Fill gradient, rows of both losses and their weighted sum; return 1 and how many are bad.

    Letters as in `reference`.
    """
    a = arguments(address, _Rows)
    each, bad = array_at(a.losses, a.n, np.float64), array_at(a.bad, a.n, np.bool_)
    if b == a.blocks:
        array_at(a.loss, 1, np.float32)[0] = row_sum(each)
        count = 0
        for i in range(a.n):
            count += bad[i]
        return 1 + count
    direct = a.gradient != 0 and a.out_kind == FP32
    in_place = direct and a.kind == FP32 and a.gradient == a.logits
    item = 4 if a.kind == FP32 else 2
    scratch = np.empty(0 if direct else a.v, np.float32)
    second = np.empty(a.v if a.temperature != 1.0 and a.temperature != 2.0 else 0, np.float32)
    support = np.empty((7, a.k + 1), np.float64)
    both = np.empty(8, np.float64)  # sums of the row at T, and at 1 where that is separate
    tops = np.empty(2 * pieces(a.v), np.float64)
    first = np.empty(pieces(a.v), np.int64)  # lists of the support, by piece
    after = np.empty(a.k, np.int64)
    weights = array_at(a.weight, a.n, np.float32)
    tails = array_at(a.rest, a.n, np.float32)
    targets = array_at(a.labels, a.n, np.int64)
    each_soft = array_at(a.soft_rows, a.n, np.float32)
    each_hard = array_at(a.hard_rows, a.n, np.float32)
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        row = a.logits + i * a.stride
        out = a.gradient + i * a.out_stride
        into = out if a.gradient != 0 else row
        w = np.float64(weights[i])
        each[i] = 0.0
        bad[i] = False
        if w == 0.0:
            if a.gradient != 0:
                clear(out, (4 if direct else 2) * a.v)
            continue
        x = array_at(out, a.v, np.float32) if direct else scratch
        y = targets[i] if a.labels != 0 else a.ignore
        has_label = y != a.ignore
        label_ok = has_label and 0 <= y < a.v
        x_label = np.nan
        chosen = array_at(a.ids + 8 * i * a.k, a.k, np.int64)
        known = array_at(a.logprobs + 4 * i * a.k, a.k, np.float32)
        ids_ok = by_piece(chosen, a.v, a.pad, known, support, first, after)
        tail = np.float64(tails[i]) if a.rest != 0 else -np.inf
        teacher_classes(support, tail, a.temperature, a.mode)
        separate = has_label and second.size > 0
        square = has_label and a.temperature == 2.0
        scale = 1.0 / a.temperature
        for piece in range(first.size):
            start = piece * PIECE
            part, copied = x[start : start + PIECE], second[start : start + PIECE]
            if not in_place:
                load_row(row + start * item, a.kind, part)
            if label_ok and y // PIECE == piece:
                x_label = np.float64(part[y - start])
            if not take_support(part, start, chosen, support, first[piece], after):
                ids_ok = False
            if separate:
                copy(part, copied)
            ahead = (start + PIECE) * item if piece + 1 < first.size else a.stride
            for turn in range(2 if separate else 1):  # a call is compiled where it is
                those, power = (copied, 1.0) if turn else (part, scale)
                sums = both[4 * turn : 4 * turn + 4]
                exponentials(those, piece == 0, power, square, sums, row + ahead, into + ahead)
                tops[turn * first.size + piece] = sums[0]
        top, mass, squares = both[0], both[1], both[2]
        bad[i] = not ids_ok or label_ok != has_label
        factor = a.soft_weight * w * a.temperature
        soft, inside = student_classes(support, top, mass, a.temperature, a.divergence, factor)
        if not ids_ok:
            soft = np.nan
            inside = np.nan
        each_soft[i] = soft
        if a.soft_weight != 0.0:
            each[i] = w * a.soft_weight * soft
        outside = 0.0
        if has_label:
            top2, cold = top, squares if square else mass
            if separate:
                top2, cold = both[4], both[5]
            hard, outside = hard_loss(support, top2, cold, x_label, w * a.hard_weight)
            if not label_ok and a.hard_weight != 0.0:
                outside = np.nan
            each_hard[i] = hard
            if a.hard_weight != 0.0:
                each[i] += w * a.hard_weight * hard
        if a.gradient != 0:
            inside += 0.0 if separate or square else outside
            squared = outside if square else 0.0
            for turn in range(2 if separate else 1):
                those, power, slope = (second, 1.0, outside) if turn else (x, scale, inside)
                twice = 0.0 if turn else squared
                its_tops = tops[turn * first.size : (turn + 1) * first.size]
                _to_gradient(those, its_tops, both[4 * turn], power, slope, twice)
            if separate:
                _add(x, second)
            for c in range(a.k):
                j = chosen[c]
                if 0 <= j < a.v:
                    x[j] = support[GRAD, c]
            if label_ok:
                x[y] -= w * a.hard_weight
            if not direct:
                round_row(x, array_at(out, a.v, np.uint16))
    return True
