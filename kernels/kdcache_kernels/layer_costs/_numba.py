"""layer_costs on CPU: one row of every layer at a time, which all stay in the second cache."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._launch import arguments, block_count, kernel, same_blocks
from kdcache_kernels._numba import (
    FP32,
    INT8,
    Real,
    array_at,
    dense_rows,
    fast,
    rows_of,
)
from kdcache_kernels._numba_rows import clear, load_any_row, round_row


class _Rows(NamedTuple):
    """Addresses of layers of both sides; `out` go costs of blocks or, of a `flow`, gradients."""

    student: int
    layers: int
    kind: int
    teacher: int
    others: int
    teacher_kind: int
    scale: int
    groups: int
    weight: int
    n: int
    h: int
    flow: int
    out: int
    out_kind: int
    blocks: int


def layer_costs(
    weight: Tensor, student: list[Tensor], codes: list[Tensor], scale: list[Tensor]
) -> Tensor:
    """As `reference.layer_costs`."""
    given = _Given(weight, student, codes, scale)
    blocks = same_blocks(given.n)
    parts = torch.empty(blocks, len(student), len(codes), dtype=torch.float64)
    _costs(_Rows(*given.arguments, 0, parts.data_ptr(), FP32, blocks))
    return parts.sum(0).float()


def layer_costs_gradient(
    weight: Tensor,
    student: list[Tensor],
    codes: list[Tensor],
    scale: list[Tensor],
    flow: Tensor,
) -> list[Tensor]:
    """As `reference.layer_costs_gradient`."""
    given = _Given(weight, student, codes, scale)
    flow = flow.float().contiguous()
    kind = gradient_dtype(student[0])
    out = [empty(tuple(x.shape), kind, x.device) for x in student]
    where = _table(out)
    out_kind, blocks = rows_of(out[0])[2], block_count(given.n)
    _gradients(_Rows(*given.arguments, flow.data_ptr(), where.data_ptr(), out_kind, blocks))
    return out


class _Given:
    """The inputs as the kernels take them; holds what the addresses are of."""

    def __init__(
        self,
        weight: Tensor,
        student: Sequence[Tensor],
        codes: Sequence[Tensor],
        scale: Sequence[Tensor],
    ) -> None:
        self.n, h = student[0].shape
        ours, theirs = [dense_rows(x) for x in student], [dense_rows(x) for x in codes]
        scales = [(x if x.dim() == 2 else x[:, None]).float().contiguous() for x in scale]
        weight = weight.contiguous()
        tables = _table(ours), _table(theirs), _table(scales)
        self.kept = ours, theirs, scales, weight, tables
        self.arguments = (
            tables[0].data_ptr(),
            len(ours),
            rows_of(ours[0])[2],
            tables[1].data_ptr(),
            len(theirs),
            rows_of(theirs[0])[2],
            tables[2].data_ptr() if scales else 0,
            scales[0].shape[1] if scales else 1,
            weight.data_ptr(),
            self.n,
            h,
        )


def _table(rows: Sequence[Tensor]) -> Tensor:
    """Address of each matrix, and bytes from one of its rows to the next, [matrices, 2]."""
    return torch.tensor([rows_of(x)[:2] for x in rows], dtype=torch.int64).reshape(-1, 2)


@fast()
def _load(table: int, layers: int, kind: int, i: int, out: Any) -> None:
    """Row `i` of every layer, decoded, but for scales."""
    where = array_at(table, 2 * layers, np.int64)
    for layer in range(layers):
        load_any_row(where[2 * layer] + i * where[2 * layer + 1], kind, out[layer])


@fast()
def _times_scales(table: int, groups: int, i: int, out: Any) -> None:
    where = array_at(table, 2 * out.shape[0], np.int64)
    size = out.shape[1] // groups
    for layer in range(out.shape[0]):
        scale = array_at(where[2 * layer] + i * where[2 * layer + 1], groups, np.float32)
        for g in range(groups):
            part, by = out[layer, g * size : (g + 1) * size], scale[g]
            for v in range(part.size):
                part[v] *= by


@fast()
def _load_both(a: Any, i: int, ours: Any, theirs: Any) -> None:
    """Row `i` of every layer of both sides, decoded."""
    _load(a.student, a.layers, a.kind, i, ours)
    _load(a.teacher, a.others, a.teacher_kind, i, theirs)
    if a.teacher_kind == INT8:
        _times_scales(a.scale, a.groups, i, theirs)


@fast()
def _squares(x: Any, y: Any) -> Real:
    total = np.float32(0.0)
    for v in range(x.size):
        e = x[v] - y[v]
        total += e * e
    return total


@fast()
def _add_difference(x: Any, y: Any, factor: Real, out: Any) -> None:
    for v in range(out.size):
        out[v] += factor * (x[v] - y[v])


@kernel(_Rows)
def _costs(address: int, b: int) -> bool:
    """Fill the costs of a block of rows."""
    a = arguments(address, _Rows)
    ours = np.empty((a.layers, a.h), np.float32)
    theirs = np.empty((a.others, a.h), np.float32)
    weights = array_at(a.weight, a.n, np.float32)
    costs = array_at(a.out + 8 * b * a.layers * a.others, a.layers * a.others, np.float64)
    for c in range(costs.size):
        costs[c] = 0.0
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        w = np.float64(weights[i]) / a.h
        if w == 0.0:
            continue
        _load_both(a, i, ours, theirs)
        for m in range(a.layers):
            for o in range(a.others):
                costs[m * a.others + o] += w * _squares(ours[m], theirs[o])
    return True


@kernel(_Rows)
def _gradients(address: int, b: int) -> bool:
    """Fill the gradient of every layer of the student."""
    a = arguments(address, _Rows)
    ours = np.empty((a.layers, a.h), np.float32)
    theirs = np.empty((a.others, a.h), np.float32)
    scratch = np.empty(a.h, np.float32)
    weights = array_at(a.weight, a.n, np.float32)
    flows = array_at(a.flow, a.layers * a.others, np.float32)
    where = array_at(a.out, 2 * a.layers, np.int64)
    for i in range(b * a.n // a.blocks, (b + 1) * a.n // a.blocks):
        w = weights[i]
        if w != 0.0:
            _load_both(a, i, ours, theirs)
        for m in range(a.layers):
            at = where[2 * m] + i * where[2 * m + 1]
            if w == 0.0:
                clear(at, where[2 * m + 1])
                continue
            out = array_at(at, a.h, np.float32) if a.out_kind == FP32 else scratch
            for v in range(out.size):
                out[v] = np.float32(0.0)
            for o in range(a.others):
                if flows[m * a.others + o] != 0.0:  # most of a plan is
                    factor = np.float32(2.0 * w * flows[m * a.others + o] / a.h)
                    _add_difference(ours[m], theirs[o], factor, out)
            if a.out_kind != FP32:
                round_row(out, array_at(at, a.h, np.uint16))
    return True
