"""Argument checks shared by the ops: what was expected, what came, what to do."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
IDS = (torch.int16, torch.int32, torch.int64, torch.uint16)


def require_matrix(name: str, x: Tensor) -> None:
    """Raise ValueError unless `x` is 2-D."""
    if x.dim() != 2:
        raise ValueError(
            f"{name} must be 2-D, [rows, columns]; got shape {tuple(x.shape)}; "
            "flatten the leading dimensions first"
        )


def require_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `x` has exactly `shape`."""
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}; got {tuple(x.shape)}")


def require_dtype(name: str, x: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError unless the dtype of `x` is one of `allowed`."""
    if x.dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{name} must be one of {names}; got {x.dtype}; convert it with .to()")


def require_device(name: str, x: Tensor, like: Tensor, owner: str) -> None:
    """Raise ValueError unless `x` lies on the device of `like`, the argument called `owner`."""
    if x.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {owner}, {like.device}; got {x.device}; "
            f"move it with .to({owner}.device)"
        )


def require_scale(name: str, scale: Tensor, codes: Tensor, width: str = "H") -> None:
    """Raise ValueError unless `scale` is [N] or [N, G] for `codes` [N, `width`].

    Both may have layers before their rows.
    """
    *rows, h = codes.shape
    *known, groups = scale.shape if scale.dim() == codes.dim() else (*scale.shape, 1)
    if known != rows or not groups or h % groups:
        lead, sizes = ("", f"N = {rows[0]}") if len(rows) == 1 else ("L, ", f"L, N = {rows}")
        raise ValueError(
            f"{name} must be [{lead}N] or [{lead}N, G] with {sizes} and G dividing {width} = {h}; "
            f"got {tuple(scale.shape)}"
        )


def require_constant(name: str, x: Tensor, owner: str) -> None:
    """Raise ValueError if `x` asks for a gradient, which only `owner` gets."""
    if x.requires_grad:
        raise ValueError(f"{name} gets no gradient, only {owner} does; pass {name}.detach()")


def constant(x: Tensor) -> Tensor:
    """A teacher's tensor as the ops take it: without the graph it may hang on."""
    return x.detach() if x.requires_grad else x


def checked_weight(weight: Tensor | None, like: Tensor, owner: str, name: str = "weight") -> Tensor:
    """Check `weight` against the rows of `like`, or make the default 1/N; in compute precision."""
    dtype = compute_dtype(like)
    rows = like.shape[:-1]
    if weight is None:
        return torch.full(rows, 1.0 / max(rows.numel(), 1), dtype=dtype, device=like.device)
    require_shape(name, weight, rows)
    require_dtype(name, weight, FLOATS)
    require_device(name, weight, like, owner)
    require_constant(name, weight, owner)
    return weight if weight.dtype == dtype else weight.to(dtype)


def mean_weight(like: Tensor) -> Tensor:
    """1/N for every row of `like`: one number in memory, seen N times."""
    rows = like.shape[:-1]
    each = torch.full((), 1.0 / max(rows.numel(), 1), dtype=compute_dtype(like), device=like.device)
    return each.expand(rows)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Precision of the arithmetic: float64 for float64 input, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def gradient_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the stored gradient: that of `x`, but float32 for float16.

    The gradient is made before the loss scaler's factor arrives: in float16 it would underflow.
    """
    return torch.float32 if x.dtype == torch.float16 else x.dtype
