"""hidden_mse in plain torch, on any device and in float64 too: the oracle of the other backends.

Letters: N rows, H columns, G groups of columns with one scale each; s student, t teacher.
"""

from typing import TypedDict

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype, gradient_dtype

LAYERNORM_EPS = 1e-12


class Inputs(TypedDict):
    """Tensors that `hidden_mse` takes, as `make_inputs` draws them."""

    student: Tensor
    codes: Tensor
    scale: Tensor | None
    weight: Tensor


def make_inputs(
    n: int,
    h: int,
    *,
    groups: int = 0,
    dtype: torch.dtype = torch.float32,
    codes_dtype: torch.dtype = torch.int8,
    seed: int = 0,
) -> Inputs:
    """Draw a student near its teacher, and weights; `groups` = 0 makes a scale of shape [N]."""
    g = torch.Generator().manual_seed(seed)
    scale = None
    if codes_dtype == torch.int8:
        codes = torch.randint(-128, 128, (n, h), generator=g, dtype=torch.int8)
        scale = (0.01 + 0.02 * torch.rand(n, groups or 1, generator=g)).half()
        scale = scale if groups else scale[:, 0]
    else:
        codes = torch.randn(n, h, generator=g).to(codes_dtype)
    noise = 0.5 * torch.randn(n, h, generator=g)
    return {
        "student": (decode(codes, scale, torch.float32) + noise).to(dtype),
        "codes": codes,
        "scale": scale,
        "weight": torch.rand(n, generator=g) + 0.1,
    }


def decode(codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the values that `codes` [..., N, H] stand for, in `dtype`."""
    x = codes.to(dtype)
    if scale is None:
        return x
    if scale.dim() < x.dim():
        return x * scale.to(dtype).unsqueeze(-1)
    groups = x.reshape(*scale.shape, x.shape[-1] // scale.shape[-1])
    return (groups * scale.to(dtype).unsqueeze(-1)).flatten(-2)


def hidden_mse(
    student: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    weight: Tensor,
    normalize: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return (loss, gradient or empty); see the public function."""
    dtype = compute_dtype(student)
    live = (weight != 0)[:, None]
    s = student.to(dtype).where(live, 0)  # a masked row may hold NaN
    t = decode(codes, scale, dtype).where(live, 0)
    y, size = _normalized(s, normalize)
    d = y - _normalized(t, normalize)[0]
    rows = (d * d).mean(1)
    loss = (weight * rows).where(live[:, 0], 0).sum()
    out = gradient_dtype(student)
    if not need_grad:
        return loss, s.new_empty((0, s.shape[1]), dtype=out)
    if normalize == "l2":
        d = d - y * (y * d).sum(1, keepdim=True)
    elif normalize == "layernorm":
        d = d - d.mean(1, keepdim=True) - y * (y * d).mean(1, keepdim=True)
    gradient = d * (weight[:, None] * 2 / s.shape[1]) / size
    return loss, gradient.where(live & (size < float("inf")), 0).to(out)


def _normalized(x: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    """Return the normalised rows and what they were divided by, [N, 1]; infinity for a zero row."""
    if normalize == "l2":
        size = x.norm(dim=1, keepdim=True)
        size = size.masked_fill(size == 0, float("inf"))
        return x / size, size
    if normalize == "layernorm":
        x = x - x.mean(1, keepdim=True)
        size = ((x * x).mean(1, keepdim=True) + LAYERNORM_EPS).sqrt()
        return x / size, size
    return x, torch.ones_like(x[:, :1])
