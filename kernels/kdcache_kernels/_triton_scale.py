"""A gradient times a scalar on GPUs, in place: a factor of 1 costs a launch and no memory."""

import torch
from torch import Tensor

from kdcache_kernels._triton import jit, on_device, tl

BLOCK = 4096
NUM_WARPS = 8
PROGRAMS = 4 * 132  # enough to move memory at its full rate, few enough to look and leave


def multiply_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply `x` by `factor`, a scalar on the same device; nothing is read back."""
    if not x.is_contiguous():
        return x.mul_(factor)
    n = x.numel()
    if n:
        with on_device(x):
            programs = min(PROGRAMS, -(-n // BLOCK))
            scale_kernel[(programs,)](x, factor, n, BLOCK=BLOCK, num_warps=NUM_WARPS)
    torch.autograd.graph.increment_version(x)
    return x


@jit
def scale_kernel(
    x_ptr: tl.tensor,  # [n]
    factor_ptr: tl.tensor,  # one
    n: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Multiply what is `program` blocks from the start, and every `programs` blocks from there."""
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, n, step):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + i, mask=i < n).to(tl.float32)
            tl.store(x_ptr + i, (x * factor).to(x_ptr.dtype.element_ty), mask=i < n)
