"""quantize_rows on CPU: one pass for the largest magnitudes, one for the codes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache_kernels._numba import (
    block_count,
    dense_rows,
    exact,
    fast,
    load_row,
    prange,
    rows_of,
)
from kdcache_kernels.quantize_rows.reference import float16_scale


def quantize_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """As `reference.quantize_rows`."""
    n, h = x.shape
    x = dense_rows(x)
    top = torch.empty(n, h // group)
    blocks = block_count(n)
    _tops(*rows_of(x), h, top.numpy(), blocks)
    scale = float16_scale(top)
    codes = torch.empty(n, h, dtype=torch.int8)
    _codes(*rows_of(x), scale.float().numpy(), codes.numpy(), blocks)
    return codes, scale


@fast()
def _top(x: Any) -> Any:
    """Largest magnitude; NaN if there is one: as whole numbers, magnitudes have one order."""
    raw, top = x.view(np.uint32), np.uint32(0)
    for v in range(raw.size):
        top = max(top, raw[v] & np.uint32(0x7FFFFFFF))
    return np.uint32(top).view(np.float32)


@exact()
def _round(x: Any, step: Any, codes: Any) -> None:
    """Multiples of `step` nearest to `x`, ties to even, at most 127 of them either way."""
    low, high = np.float32(-127.0), np.float32(127.0)
    for v in range(x.size):
        codes[v] = np.int8(min(max(np.rint(x[v] / step), low), high))


@fast(parallel=True)
def _tops(rows: int, stride: int, kind: int, h: int, top: Any, blocks: int) -> None:
    n, groups = top.shape
    width = h // groups
    for b in prange(blocks):
        x = np.empty(h, np.float32)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            load_row(rows + i * stride, kind, x)
            for g in range(groups):
                top[i, g] = _top(x[g * width : (g + 1) * width])


@fast(parallel=True)
def _codes(rows: int, stride: int, kind: int, scale: Any, codes: Any, blocks: int) -> None:
    n, groups = scale.shape
    h = codes.shape[1]
    width = h // groups
    for b in prange(blocks):
        x = np.empty(h, np.float32)
        for i in range(b * n // blocks, (b + 1) * n // blocks):
            load_row(rows + i * stride, kind, x)
            for g in range(groups):
                part = slice(g * width, (g + 1) * width)
                step = scale[i, g] if scale[i, g] != 0.0 else np.float32(1.0)
                _round(x[part], step, codes[i, part])
