"""The teacher of linear_kl: its hidden states and its head, checked, and the logits they make."""

import torch
from torch import Tensor

from kdcache_kernels import _linear
from kdcache_kernels._checks import (
    FLOATS,
    require_device,
    require_dtype,
    require_matrix,
    require_scale,
    require_shape,
)
from kdcache_kernels._linear import Chunk
from kdcache_kernels.linear_kl.spec import TeacherHead
from kdcache_kernels.quantize_rows.reference import dequantize_rows


def check_teacher(teacher: TeacherHead, hidden: Tensor, v: int) -> None:
    """Raise ValueError or TypeError unless `teacher` has the rows of `hidden` and `v` classes."""
    codes, weight, bias, scale = teacher
    for name, x in zip(TeacherHead._fields, teacher, strict=True):
        if x is not None:
            require_device(name, x, hidden, "hidden")
            require_dtype(name, x, (*FLOATS, torch.int8) if x is codes else FLOATS)
    require_matrix("teacher_hidden", codes)
    n, h = hidden.shape[0], codes.shape[1]
    require_shape("teacher_hidden", codes, (n, h))
    if tuple(weight.shape) != (v, h):
        raise ValueError(
            f"teacher_weight must be [V, Ht] with V = {v} classes like the student's weight and "
            f"Ht = {h}, the width of teacher_hidden; got {tuple(weight.shape)}"
        )
    if bias is not None:
        require_shape("teacher_bias", bias, (v,))
    if (codes.dtype == torch.int8) != (scale is not None):
        raise ValueError(
            "an int8 teacher_hidden needs teacher_scale [N] or [N, G], a float one takes none; got "
            f"{codes.dtype} and scale {'None' if scale is None else tuple(scale.shape)}"
        )
    if scale is not None:
        require_scale("teacher_scale", scale, codes, "Ht")


class TeacherLogits:
    """The teacher's logits, a chunk of rows at a time; `out` is their dtype."""

    def __init__(self, teacher: TeacherHead, out: torch.dtype) -> None:
        hidden, weight, bias, scale = teacher
        dtype = weight.dtype
        if out == torch.float64 or dtype == torch.float64 or weight.device.type == "cpu":
            dtype = out
        self.hidden, self.scale, self.dtype = hidden, scale, out
        self.classes = len(weight)
        self.weight = _linear.cast_head(weight, None, dtype).weight
        self.bias = None if bias is None else bias.to(out)
        self.buffer = weight.new_empty(0, 0)

    def logits(self, rows: Chunk) -> Tensor:
        """Those of `rows` less the bias, in float32 or float64; the next call overwrites them."""
        x = self.hidden[rows]
        if self.scale is not None:
            x = dequantize_rows(x, self.scale[rows])
        if len(self.buffer) < len(x):  # the first chunk is the longest
            shape = (len(x), len(self.weight))
            self.buffer = _linear.chunk_buffer(*shape, self.dtype, self.weight.device)
        out = self.buffer[: len(x)]
        _linear.product(out, x.to(self.weight.dtype), self.weight.t())
        return out[:, : self.classes]
