"""quantize_rows on GPUs: one read of the rows, one write of the codes."""

import torch
from torch import Tensor

from kdcache_kernels._triton import (
    grouped_columns,
    jit,
    max_registers,
    on_device,
    rows_of,
    tile,
    tl,
)
from kdcache_kernels.quantize_rows import reference

MAX_BLOCK = 16384  # wider rows do not fit the registers of one block of threads
TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it rounds to nearest, ties to even


def quantize_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """As `reference.quantize_rows`; rows of more than 16384 columns run in plain torch."""
    n, h = x.shape
    groups = h // group
    held = tile(groups, group)
    if held.groups * held.width > MAX_BLOCK:
        return reference.quantize_rows(x, group)
    codes = torch.empty((n, h), dtype=torch.int8, device=x.device)
    scale = torch.empty((n, groups), dtype=torch.float16, device=x.device)
    x = rows_of(x)
    if n:
        with on_device(x):
            rows_kernel[(-(-n // held.rows),)](
                x,
                codes,
                scale,
                n,
                x.stride(0),
                G=groups,
                Q=group,
                R=held.rows,
                BLOCK_G=held.groups,
                BLOCK_Q=held.width,
                num_warps=held.num_warps,
                maxnreg=max_registers(held.num_warps),
            )
    reference.require_finite(scale)
    return codes, scale


@jit
def rows_kernel(
    x_ptr: tl.tensor,  # [N, G * Q], rows of `stride`
    codes_ptr: tl.tensor,  # [N, G * Q]
    scale_ptr: tl.tensor,  # [N, G]
    N: tl.tensor,
    stride: tl.tensor,
    G: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    """Codes and scales of R rows; divisions are rounded, so that codes are those of torch."""
    row = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None, None]
    column, inside = grouped_columns(G, Q, BLOCK_G, BLOCK_Q)
    inside = inside & (row < N)
    x = tl.load(x_ptr + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    # Magnitudes compare like their bits, among which NaN is the largest: it is not lost.
    magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    top = tl.max(magnitude, 2)[:, :, None].to(tl.float32, bitcast=True)
    scale = tl.div_rn(top, 127.0).to(tl.float16)
    # Among subnormals rounding to nearest may clip far more than half a step: go one up.
    clips = top > 127.5 * scale.to(tl.float32)
    bits = scale.to(tl.int16, bitcast=True)
    scale = tl.where(clips, bits + 1, bits).to(tl.int16).to(tl.float16, bitcast=True)
    step = tl.where(scale == 0, 1.0, scale.to(tl.float32))
    steps = tl.div_rn(x, tl.broadcast_to(step, x.shape))
    steps = tl.minimum(tl.maximum(steps, -127.0), 127.0)
    codes = ((steps + TO_INTEGER) - TO_INTEGER).to(tl.int8)
    tl.store(codes_ptr + row * (G * Q) + column, codes, mask=inside)
    g = tl.arange(0, BLOCK_G)[None, :, None]
    tl.store(scale_ptr + row * G + g, scale, mask=(row < N) & (g < G))
