"""topk_kl on CPU: one row at a time through the cache, rows shared among threads.

A row is taken a piece at a time: copied into its place in the gradient (or a scratch row), its
support taken out, the rest replaced by its exponentials, while the next piece is on its way from
memory. Then the exponentials, which lie in cache, are scaled into the gradient.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._numba import (
    FP32,
    Real,
    array_at,
    block_count,
    dense_rows,
    fast,
    parallel,
    prange,
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
    ok = _all_rows(
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
        block_count(n),
    )
    if check and not ok:
        reference.check_ids(logits, teacher.ids, labels, weight, spec.ignore_index)
    return loss, soft, hard


@fast()
def _to_gradient(x: Any, tops: Any, top: Real, scale: Real, a: Real, square: Real) -> None:
    """Multiply the exponentials, rebased to `top`, by `a`; add `square` times their square."""
    for piece in range(tops.size):
        part = x[piece * PIECE : (piece + 1) * PIECE]
        shrink = np.exp(np.float64(tops[piece] - top) * scale) if tops[piece] != -np.inf else 0.0
        one, two = np.float32(a * shrink), np.float32(square * shrink * shrink)
        for v in range(part.size):
            part[v] = part[v] * (one + two * part[v])


@fast()
def _add(x: Any, y: Any) -> None:
    for v in range(x.size):
        x[v] += y[v]


@parallel()
def _all_rows(
    logits: int,
    stride: int,
    kind: int,
    gradient: int,
    out_stride: int,
    out_kind: int,
    n: int,
    v: int,
    ids: int,
    k: int,
    pad: int,
    logprobs: int,
    rest: int,
    weight: int,
    labels: int,
    ignore: int,
    temperature: Real,
    mode: int,
    divergence: int,
    soft_weight: Real,
    hard_weight: Real,
    losses: int,
    soft_rows: int,
    hard_rows: int,
    loss: int,
    blocks: int,
) -> bool:
    """Fill gradient, rows of both losses and their weighted sum; False for bad ids or labels.

    Letters as in `reference`; small arrays too come as their addresses, 0 for none.
    """
    bad = np.empty(n, np.float64)
    for b in prange(blocks):
        direct = gradient != 0 and out_kind == FP32
        in_place = direct and kind == FP32 and gradient == logits
        item = 4 if kind == FP32 else 2
        scratch = np.empty(0 if direct else v, np.float32)
        second = np.empty(v if temperature != 1.0 and temperature != 2.0 else 0, np.float32)
        support = np.empty((7, k + 1), np.float64)
        both = np.empty(6, np.float64)  # sums of the row at T, and at 1 where that is separate
        tops = np.empty(2 * pieces(v), np.float32)
        first = np.empty(pieces(v), np.int64)  # lists of the support, by piece
        after = np.empty(k, np.int64)
        weights = array_at(weight, n, np.float32)
        tails = array_at(rest, n, np.float32)
        targets = array_at(labels, n, np.int64)
        each = array_at(losses, n, np.float64)
        each_soft = array_at(soft_rows, n, np.float32)
        each_hard = array_at(hard_rows, n, np.float32)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            row = logits + i * stride
            out = gradient + i * out_stride
            into = out if gradient != 0 else row
            w = np.float64(weights[i])
            each[i] = 0.0
            bad[i] = 0.0
            if w == 0.0:
                if gradient != 0:
                    clear(out, (4 if direct else 2) * v)
                continue
            x = array_at(out, v, np.float32) if direct else scratch
            y = targets[i] if labels != 0 else ignore
            has_label = y != ignore
            label_ok = has_label and 0 <= y < v
            x_label = np.nan
            chosen = array_at(ids + 8 * i * k, k, np.int64)
            known = array_at(logprobs + 4 * i * k, k, np.float32)
            ids_ok = by_piece(chosen, v, pad, known, support, first, after)
            tail = np.float64(tails[i]) if rest != 0 else -np.inf
            teacher_classes(support, tail, temperature, mode)
            separate = has_label and second.size > 0
            square = has_label and temperature == 2.0
            scale = 1.0 / temperature
            for piece in range(first.size):
                start = piece * PIECE
                part, copied = x[start : start + PIECE], second[start : start + PIECE]
                if not in_place:
                    load_row(row + start * item, kind, part)
                if label_ok and y // PIECE == piece:
                    x_label = np.float64(part[y - start])
                if not take_support(part, start, chosen, support, first[piece], after):
                    ids_ok = False
                if separate:
                    copy(part, copied)
                ahead = (start + PIECE) * item if piece + 1 < first.size else stride
                for turn in range(2 if separate else 1):  # a call is compiled where it is
                    those, power = (copied, 1.0) if turn else (part, scale)
                    sums = both[3 * turn : 3 * turn + 3]
                    exponentials(those, piece == 0, power, square, sums, row + ahead, into + ahead)
                    tops[turn * first.size + piece] = sums[0]
            top, mass, squares = both[0], both[1], both[2]
            bad[i] = 0.0 if ids_ok and (label_ok or not has_label) else 1.0
            factor = soft_weight * w * temperature
            soft, inside = student_classes(support, top, mass, temperature, divergence, factor)
            if not ids_ok:
                soft = np.nan
                inside = np.nan
            each_soft[i] = soft
            if soft_weight != 0.0:
                each[i] = w * soft_weight * soft
            outside = 0.0
            if has_label:
                top2, cold = top, squares if square else mass
                if separate:
                    top2, cold = both[3], both[4]
                hard, outside = hard_loss(support, top2, cold, x_label, w * hard_weight)
                if not label_ok and hard_weight != 0.0:
                    outside = np.nan
                each_hard[i] = hard
                if hard_weight != 0.0:
                    each[i] += w * hard_weight * hard
            if gradient != 0:
                inside += 0.0 if separate or square else outside
                squared = outside if square else 0.0
                for turn in range(2 if separate else 1):
                    those, power, slope = (second, 1.0, outside) if turn else (x, scale, inside)
                    twice = 0.0 if turn else squared
                    its_tops = tops[turn * first.size : (turn + 1) * first.size]
                    _to_gradient(those, its_tops, both[3 * turn], power, slope, twice)
                if separate:
                    _add(x, second)
                for c in range(k):
                    j = chosen[c]
                    if 0 <= j < v:
                        x[j] = support[GRAD, c]
                if label_ok:
                    x[y] -= w * hard_weight
                if not direct:
                    round_row(x, array_at(out, v, np.uint16))
    array_at(loss, 1, np.float32)[0] = row_sum(array_at(losses, n, np.float64))
    return bool(row_sum(bad) == 0.0)
