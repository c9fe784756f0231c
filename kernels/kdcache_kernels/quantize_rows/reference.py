"""quantize_rows and dequantize_rows in plain torch."""

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype


def make_inputs(n: int, h: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Draw hidden states [N, H] with the few large columns that transformers have."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, h, generator=g)
    x[:, :: max(1, h // 3)] *= 20
    return x.to(dtype)


def quantize_rows(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return (codes [N, H], scale [N, H / group]); see the public function."""
    n, h = x.shape
    grouped = x.to(compute_dtype(x)).reshape(n, h // group, group)
    top = grouped.abs().amax(2)
    scale = float16_scale(top)
    step = scale.to(grouped.dtype)[..., None]
    codes = (grouped / step.masked_fill(step == 0, 1)).round().clamp(-127, 127)
    return codes.to(torch.int8).view(n, h), scale


def float16_scale(top: Tensor) -> Tensor:
    """The scale of groups [N, G] whose largest magnitude is `top`; ValueError if not finite."""
    scale = (top / 127).half()
    # Among subnormals rounding to nearest may clip far more than half a step: go one up.
    clips = top > 127.5 * scale.to(top.dtype)
    scale = torch.where(clips, (scale.view(torch.int16) + 1).view(torch.float16), scale)
    require_finite(scale)
    return scale


def require_finite(scale: Tensor) -> None:
    """Raise ValueError, naming the row, if some scale is not finite."""
    bad = (~scale.isfinite()).any(1).nonzero()
    if len(bad):
        raise ValueError(
            "x must be finite, with magnitudes below 8.3e6 so that its scale fits float16; "
            f"row {int(bad[0])} is not ({len(bad)} such rows): check the layer, or store it as bf16"
        )


def dequantize_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """Return codes * scale in float32."""
    n, h = codes.shape
    groups = scale.shape[1] if scale.dim() == 2 else 1
    x = codes.float().view(n, groups, h // groups) * scale.float().view(n, groups, 1)
    return x.view(n, h)
