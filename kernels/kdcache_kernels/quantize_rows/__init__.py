"""Hidden states as 8-bit codes with one scale for each row, or for each group of columns."""

import torch
from torch import Tensor

from kdcache_kernels._backends import dispatched
from kdcache_kernels._checks import FLOATS, require_dtype, require_matrix, require_scale
from kdcache_kernels.quantize_rows import reference

__all__ = ["dequantize_rows", "quantize_rows"]


def quantize_rows(x: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Round each row of `x` to int8 codes times a float16 scale.

    The scale is the largest magnitude / 127, rounded to float16 before the codes are computed
    with it, so that what is decoded is the nearest multiple of the scale that is stored.

    Args:
        x: hidden states, [N, H], float32, float16, bfloat16 or float64, any device.
        group: columns that share a scale; must divide H. None: the whole row.

    Returns:
        codes, int8 [N, H], in [-127, 127].
        scale, float16 [N], or [N, H / group] with `group`. A group of zeros has scale 0, codes 0.

    Raises:
        ValueError: wrong shape or group; a row that is not finite, or whose scale passes the
            largest float16 (a magnitude above 8.3e6); the message names the row.
        TypeError: wrong dtype.
    """
    require_matrix("x", x)
    require_dtype("x", x, FLOATS)
    h = x.shape[1]
    if h == 0:
        raise ValueError(f"x must have at least one column; got {tuple(x.shape)}")
    if group is not None and (group < 1 or h % group):
        raise ValueError(f"group must be positive and divide H = {h}; got {group}")
    codes, scale = _kernel(x.detach(), group or h)
    return codes, scale if group is not None else scale[:, 0]


_kernel = dispatched(reference.quantize_rows)


def dequantize_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """Return `codes * scale`, float32 [N, H].

    Args:
        codes: int8, [N, H].
        scale: floating, [N] or [N, G] with G dividing H.

    Raises:
        ValueError: wrong shape.
        TypeError: wrong dtype.
    """
    require_matrix("codes", codes)
    require_dtype("codes", codes, (torch.int8,))
    require_dtype("scale", scale, FLOATS)
    require_scale("scale", scale, codes)
    return reference.dequantize_rows(codes, scale)
