"""hidden_mse on GPUs: both rows in registers, the gradient written by the same launch.

A tile holds several rows as [R, groups, columns of a group], so that a scale is loaded once a
group. fp8 codes come as bytes and are decoded from their bits: sm_80 has no such type.
"""

import torch
from torch import Tensor

from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels._triton import (
    grouped_columns,
    jit,
    max_registers,
    on_device,
    rows_of,
    tile,
    tl,
)
from kdcache_kernels.hidden_mse import reference

MAX_BLOCK = 16384  # wider rows do not fit the registers of one block of threads
MODES = {"none": 0, "l2": 1, "layernorm": 2}
L2 = tl.constexpr(1)
LAYERNORM = tl.constexpr(2)
LAYERNORM_EPS = tl.constexpr(reference.LAYERNORM_EPS)


def hidden_mse(
    student: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    normalize: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """As `reference.hidden_mse`; rows of more than 16384 columns run in plain torch."""
    n, h = student.shape
    groups = scale.shape[1] if scale is not None and scale.dim() == 2 else 1
    held = tile(groups, h // groups)
    if held.groups * held.width > MAX_BLOCK:
        return reference.hidden_mse(student, codes, scale, weight, normalize, need_grad)
    shape = (n if need_grad else 0, h)
    gradient = torch.empty(shape, dtype=gradient_dtype(student), device=student.device)
    losses = torch.empty(n, dtype=torch.float32, device=student.device)
    fp8 = codes.dtype == torch.float8_e4m3fn
    alike = weight.stride(0) == 0  # one number, seen N times
    s, t = rows_of(student), rows_of(codes.view(torch.uint8) if fp8 else codes)
    if n:
        with on_device(student):
            rows_kernel[(-(-n // held.rows),)](
                s,
                t,
                weight if scale is None else scale.contiguous(),
                weight if alike else weight.contiguous(),
                losses,
                gradient,
                n,
                s.stride(0),
                t.stride(0),
                G=groups,
                Q=h // groups,
                MODE=MODES[normalize],
                FP8=fp8,
                HAS_SCALE=scale is not None,
                ALIKE=alike,
                NEED_GRAD=need_grad,
                R=held.rows,
                BLOCK_G=held.groups,
                BLOCK_Q=held.width,
                num_warps=held.num_warps,
                maxnreg=max_registers(held.num_warps),
            )
    return losses.sum(), gradient


@jit
def row_sum(x: tl.tensor) -> tl.tensor:
    """Sums of the rows of a tile, [R, 1, 1]."""
    return tl.sum(tl.sum(x, 2), 1)[:, None, None]


@jit
def from_e4m3(bits: tl.tensor) -> tl.tensor:
    """The float32 values of e4m3 bytes: as float16 they are 256 times too small."""
    wide = bits.to(tl.int16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    value = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), value)


@jit
def normalized(x: tl.tensor, inside: tl.tensor, H: tl.constexpr, MODE: tl.constexpr) -> tl.tensor:
    """The normalised rows and one over what they were divided by; 0 for a row of zero length."""
    if MODE == L2:
        square = row_sum(x * x)
        inverse = tl.where(square == 0, 0.0, 1.0 / tl.sqrt_rn(square))
    else:
        x = tl.where(inside, x - row_sum(x) / H, 0.0)
        inverse = 1.0 / tl.sqrt_rn(row_sum(x * x) / H + LAYERNORM_EPS)
    return x * inverse, inverse


@jit
def rows_kernel(
    student_ptr: tl.tensor,  # [N, G * Q], rows of `stride`
    codes_ptr: tl.tensor,  # [N, G * Q], rows of `codes_stride`
    scale_ptr: tl.tensor,  # [N, G]
    weight_ptr: tl.tensor,  # [N], or [1] with ALIKE
    losses_ptr: tl.tensor,  # [N]
    gradient_ptr: tl.tensor,  # [N, G * Q]
    N: tl.tensor,
    stride: tl.tensor,
    codes_stride: tl.tensor,
    G: tl.constexpr,
    Q: tl.constexpr,
    MODE: tl.constexpr,
    FP8: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ALIKE: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    """Weighted losses and gradient of R rows.

    A row of weight zero is not read, so rows wait for their weights; not where all are ALIKE.
    """
    H: tl.constexpr = G * Q
    first = tl.program_id(0).to(tl.int64) * R
    i = first + tl.arange(0, R)
    w = tl.load(weight_ptr + (i * 0 if ALIKE else i), mask=i < N, other=0.0).to(tl.float32)
    column, inside = grouped_columns(G, Q, BLOCK_G, BLOCK_Q)
    row = i[:, None, None]
    counts = (w != 0)[:, None, None]
    read = row < N if ALIKE else counts
    live = read & inside
    s = tl.load(student_ptr + row * stride + column, mask=live, other=0.0).to(tl.float32)
    t = tl.load(codes_ptr + row * codes_stride + column, mask=live, other=0)
    t = from_e4m3(t) if FP8 else t.to(tl.float32)
    if HAS_SCALE:
        g = tl.arange(0, BLOCK_G)[None, :, None]
        at = read & (g < G)
        t = t * tl.load(scale_ptr + row * G + g, mask=at, other=0.0).to(tl.float32)
    if ALIKE:
        s, t = tl.where(counts, s, 0.0), tl.where(counts, t, 0.0)
    factor = w[:, None, None] * (2.0 / H)
    if MODE != 0:
        s, inverse = normalized(s, live, H, MODE)
        t, _ = normalized(t, live, H, MODE)
        factor = factor * inverse
    d = s - t
    losses = w * (tl.sum(tl.sum(d * d, 2), 1) / H)
    tl.store(losses_ptr + i, losses, mask=i < N)
    if NEED_GRAD:
        if MODE == L2:
            d = d - s * row_sum(s * d)
        if MODE == LAYERNORM:
            d = d - row_sum(d) / H - s * (row_sum(s * d) / H)
        gradient = (factor * d).to(gradient_ptr.dtype.element_ty)
        tl.store(gradient_ptr + row * H + column, gradient, mask=(row < N) & inside)
