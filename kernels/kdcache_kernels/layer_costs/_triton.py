"""layer_costs on GPUs: a program takes the rows of all layers, tile by tile, through its caches.

Layers are tensors of their own, so a kernel is given a table of their addresses and strides: no
copy puts them side by side. Costs are added up by a program over its tiles, and by torch over
programs, in one order always.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._device import captured
from kdcache_kernels._triton import (
    PIECE_BYTES,
    Tile,
    grouped_columns,
    jit,
    max_registers,
    on_device,
    power_of_2,
    rows_of,
    tile,
    tl,
)
from kdcache_kernels.hidden_mse._triton import MAX_BLOCK, from_e4m3
from kdcache_kernels.layer_costs import reference

PROGRAMS = 4 * 132  # enough to move memory at its full rate


def layer_costs(
    weight: Tensor, student: list[Tensor], codes: list[Tensor], scale: list[Tensor]
) -> Tensor:
    """As `reference.layer_costs`; where a program does not work, in plain torch."""
    held = _held(student, scale)
    if not _works(weight, held):
        return reference.layer_costs(weight, student, codes, scale)
    given = _Given(weight, student, codes, scale, held)
    programs = max(1, min(PROGRAMS, -(-len(weight) // held.rows)))
    parts = weight.new_zeros((programs, len(student), len(codes)))
    if len(weight):
        with on_device(weight):
            costs_kernel[(programs,)](
                *given.tensors,
                parts,
                *given.sizes,
                BLOCK_M=power_of_2(len(student)),
                BLOCK_L=power_of_2(len(codes)),
                **given.constants,
            )
    return parts.sum(0)


def layer_costs_gradient(
    weight: Tensor,
    student: list[Tensor],
    codes: list[Tensor],
    scale: list[Tensor],
    flow: Tensor,
) -> list[Tensor]:
    """As `reference.layer_costs_gradient`."""
    held = _held(student, scale)
    if not _works(weight, held):
        return reference.layer_costs_gradient(weight, student, codes, scale, flow)
    given = _Given(weight, student, codes, scale, held)
    out = weight.new_empty((len(student), *student[0].shape), dtype=gradient_dtype(student[0]))
    if len(weight):
        with on_device(weight):
            gradient_kernel[(-(-len(weight) // held.rows),)](
                *given.tensors, flow.float().contiguous(), out, *given.sizes, **given.constants
            )
    return list(out.unbind())


def _held(student: Sequence[Tensor], scale: Sequence[Tensor]) -> Tile:
    """A tile of the rows of one layer."""
    groups = scale[0].shape[1] if scale and scale[0].dim() == 2 else 1
    return tile(groups, student[0].shape[1] // groups)


def _works(weight: Tensor, held: Tile) -> bool:
    """Whether a row is at most 16384 columns, and no graph is captured: one that is replayed would
    find other tensors than the table has the addresses of.
    """
    return held.groups * held.width <= MAX_BLOCK and not captured(weight)


class _Given:
    """The inputs as the kernels take them; holds what the addresses are of."""

    def __init__(
        self,
        weight: Tensor,
        student: Sequence[Tensor],
        codes: Sequence[Tensor],
        scale: Sequence[Tensor],
        held: Tile,
    ) -> None:
        n, h = student[0].shape
        fp8 = codes[0].dtype == torch.float8_e4m3fn
        ours = [rows_of(x) for x in student]
        theirs = [rows_of(x.view(torch.uint8) if fp8 else x) for x in codes]
        scales = [(x if x.dim() == 2 else x[:, None]).float().contiguous() for x in scale]
        groups = scales[0].shape[1] if scales else 1
        table = _table([*ours, *theirs, *scales])
        self.kept = ours, theirs, scales
        first_scale = scales[0] if scales else weight
        self.tensors = (table, ours[0], theirs[0], first_scale, weight.contiguous())
        self.sizes = n, len(student), len(codes)
        self.constants: dict[str, Any] = {
            "G": groups,
            "Q": h // groups,
            "FP8": fp8,
            "HAS_SCALE": bool(scales),
            "ALIGNED": all(map(_aligned, [*ours, *theirs])),
            "R": held.rows,
            "BLOCK_G": held.groups,
            "BLOCK_Q": held.width,
            "num_warps": held.num_warps,
            "maxnreg": max_registers(held.num_warps),
        }


def _aligned(x: Tensor) -> bool:
    """Whether every row starts on a boundary of 16 bytes."""
    return x.data_ptr() % PIECE_BYTES == x.stride(0) * x.element_size() % PIECE_BYTES == 0


def _table(layers: Sequence[Tensor]) -> Tensor:
    """Address of each layer, and elements from one of its rows to the next, [layers, 2].

    It is copied from pinned memory, so nobody waits for it.
    """
    on_gpu = layers[0].is_cuda
    rows = [[x.data_ptr(), x.stride(0)] for x in layers]
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=on_gpu)
    return table.to(layers[0].device, non_blocking=True)


@jit
def layer_rows(
    table_ptr: tl.tensor,  # addresses and strides
    like_ptr: tl.tensor,  # whose dtype the layer has
    layer: tl.tensor,
    row: tl.tensor,
    ALIGNED: tl.constexpr,
) -> tl.tensor:
    """Where some rows of a layer start."""
    start = tl.load(table_ptr + 2 * layer).to(like_ptr.dtype)
    stride = tl.load(table_ptr + 2 * layer + 1)
    if ALIGNED:
        start = tl.multiple_of(start, 16)
        stride = tl.multiple_of(stride, 16 // (like_ptr.dtype.element_ty.primitive_bitwidth // 8))
    return start + row * stride


@jit
def teacher_rows(
    table_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    layer: tl.tensor,  # of the teacher
    M: tl.tensor,
    L: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    live: tl.tensor,
    G: tl.constexpr,
    FP8: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_G: tl.constexpr,
) -> tl.tensor:
    """Some decoded rows of a layer of the teacher."""
    start = layer_rows(table_ptr, codes_ptr, M + layer, row, ALIGNED)
    t = tl.load(start + column, mask=live, other=0)
    t = from_e4m3(t) if FP8 else t.to(tl.float32)
    if HAS_SCALE:
        g = tl.arange(0, BLOCK_G)[None, :, None]
        of_rows = layer_rows(table_ptr, scale_ptr, M + L + layer, row, False)
        at = (tl.max(tl.max(live.to(tl.int32), 2), 1) != 0)[:, None, None] & (g < G)
        t = t * tl.load(of_rows + g, mask=at, other=0.0).to(tl.float32)
    return t


@jit
def costs_kernel(
    table_ptr: tl.tensor,  # [M + L + scales, 2]
    student_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    weight_ptr: tl.tensor,  # [N]
    parts_ptr: tl.tensor,  # [programs, M, L]
    N: tl.tensor,
    M: tl.tensor,
    L: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    G: tl.constexpr,
    Q: tl.constexpr,
    FP8: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ALIGNED: tl.constexpr,
    R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    """Costs of the rows of every tile that is a program's."""
    program = tl.program_id(0).to(tl.int64)
    column, inside = grouped_columns(G, Q, BLOCK_G, BLOCK_Q)
    m_of = tl.arange(0, BLOCK_M)[:, None]
    l_of = tl.arange(0, BLOCK_L)[None, :]
    costs = tl.zeros([BLOCK_M, BLOCK_L], tl.float32)
    for first in range(program * R, N, tl.num_programs(0) * R):
        i = first + tl.arange(0, R)
        w = tl.load(weight_ptr + i, mask=i < N, other=0.0).to(tl.float32)
        row = i[:, None, None]
        live = (w != 0)[:, None, None] & inside  # a masked row is not read
        for m in range(M):
            start = layer_rows(table_ptr, student_ptr, m, row, ALIGNED)
            s = tl.load(start + column, mask=live, other=0.0).to(tl.float32)
            for other in range(L):
                t = teacher_rows(
                    table_ptr, codes_ptr, scale_ptr, other, M, L, row, column, live,
                    G, FP8, HAS_SCALE, ALIGNED, BLOCK_G,
                )  # fmt: skip
                d = s - t
                cost = tl.sum(w * (tl.sum(tl.sum(d * d, 2), 1) / (G * Q)), 0)
                costs += tl.where((m_of == m) & (l_of == other), cost, 0.0)
    at = program * M * L + m_of * L + l_of
    tl.store(parts_ptr + at, costs, mask=(m_of < M) & (l_of < L))


@jit
def gradient_kernel(
    table_ptr: tl.tensor,  # [M + L + scales, 2]
    student_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    weight_ptr: tl.tensor,  # [N]
    flow_ptr: tl.tensor,  # [M, L]
    gradient_ptr: tl.tensor,  # [M, N, G * Q]
    N: tl.tensor,
    M: tl.tensor,
    L: tl.tensor,
    G: tl.constexpr,
    Q: tl.constexpr,
    FP8: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ALIGNED: tl.constexpr,
    R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    """Gradient of R rows of every layer of the student; nothing is read where nothing flows."""
    H: tl.constexpr = G * Q
    i = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    w = tl.load(weight_ptr + i, mask=i < N, other=0.0).to(tl.float32)
    column, inside = grouped_columns(G, Q, BLOCK_G, BLOCK_Q)
    row = i[:, None, None]
    live = (w != 0)[:, None, None] & inside
    for m in range(M):
        start = layer_rows(table_ptr, student_ptr, m, row, ALIGNED)
        s = tl.load(start + column, mask=live, other=0.0).to(tl.float32)
        total = tl.zeros([R, BLOCK_G, BLOCK_Q], tl.float32)
        for other in range(L):
            flow = tl.load(flow_ptr + m * L + other)
            if flow != 0.0:
                t = teacher_rows(
                    table_ptr, codes_ptr, scale_ptr, other, M, L, row, column, live,
                    G, FP8, HAS_SCALE, ALIGNED, BLOCK_G,
                )  # fmt: skip
                total += flow * (s - t)
        gradient = (w[:, None, None] * (2.0 / H)) * total
        out = gradient_ptr + (m * N + row) * H + column
        tl.store(out, gradient.to(gradient_ptr.dtype.element_ty), mask=(row < N) & inside)
