"""The head that the fused linear ops are given: checked, and how its matrix products run."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdcache_kernels._checks import (
    FLOATS,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
)


class Products(NamedTuple):
    """How the matrix products run, and which of their gradients are made."""

    dtype: torch.dtype
    chunk_bytes: int
    """0 for the default of the device."""
    need_hidden: bool
    need_weight: bool
    need_bias: bool

    @property
    def needs_any(self) -> bool:
        """Is any gradient made?"""
        return self.need_hidden or self.need_weight or self.need_bias


def products(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk_bytes: int | None
) -> Products:
    """Those of a head; ValueError unless `chunk_bytes` is positive, if there is any."""
    if chunk_bytes is not None and chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive; got {chunk_bytes}")
    needs = need(hidden, weight, bias)
    return Products(gemm_dtype(hidden, weight), chunk_bytes or 0, *needs)


def need(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[bool, bool, bool]:
    """Which gradients autograd would ask for."""
    on = torch.is_grad_enabled()
    return (
        on and hidden.requires_grad,
        on and weight.requires_grad,
        on and bias is not None and bias.requires_grad,
    )


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[int, int]:
    """Raise ValueError or TypeError unless `hidden` can go through the head; return (N, V)."""
    require_matrix("hidden", hidden)
    require_matrix("weight", weight)
    require_dtype("hidden", hidden, FLOATS)
    require_dtype("weight", weight, FLOATS)
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"weight must be [V, H] with H = {hidden.shape[1]}, the width of hidden; "
            f"got {tuple(weight.shape)}"
        )
    require_device("weight", weight, hidden, "hidden")
    v = weight.shape[0]
    if bias is not None:
        require_shape("bias", bias, (v,))
        require_dtype("bias", bias, FLOATS)
        require_device("bias", bias, hidden, "hidden")
    return hidden.shape[0], v


def gemm_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Dtype of the matrix products and of the chunk's logits: `product_dtype` of the head's.

    That is autocast's if it is on, else what both sides have (TypeError if they differ).
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (hidden.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(kind)
    elif hidden.dtype == weight.dtype:
        dtype = hidden.dtype
    else:
        raise TypeError(
            f"hidden and weight must have one dtype; got {hidden.dtype} and {weight.dtype}: "
            "convert one with .to(), or use torch.autocast"
        )
    return product_dtype(dtype, kind)


def product_dtype(dtype: torch.dtype, kind: str) -> torch.dtype:
    """What a head of a dtype is multiplied in on a kind of device.

    float16 becomes float32, or gradients would underflow before a loss scaler's factor arrives; so
    does bfloat16 on a CPU: most have no bfloat16 units, and torch no such product into float32.
    """
    if dtype == torch.float16 or (dtype == torch.bfloat16 and kind == "cpu"):
        return torch.float32
    return dtype
