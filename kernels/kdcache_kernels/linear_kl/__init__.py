"""Full-vocabulary divergence from a teacher whose logits are rebuilt from its last hidden state."""

import math
from typing import Any, Literal, TypeAlias, cast, overload

import torch
from torch import Tensor

from kdcache_kernels import _linear
from kdcache_kernels._checks import (
    FLOATS,
    compute_dtype,
    constant,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
)
from kdcache_kernels._checks import row_weight as checked_row_weight
from kdcache_kernels._linear import Chunk, Need, Outputs
from kdcache_kernels._op import define
from kdcache_kernels.linear_kl.reference import check_labels as check_all_labels
from kdcache_kernels.linear_kl.spec import Spec
from kdcache_kernels.quantize_rows.reference import dequantize_rows
from kdcache_kernels.topk_kl.spec import DIVERGENCES, Divergence

__all__ = ["linear_kl"]

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]


@overload
def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    teacher_scale: Tensor | None = None,
    temperature: float = 1.0,
    divergence: Divergence = "forward",
    soft_weight: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    check_labels: bool | None = None,
    chunk_bytes: int | None = None,
    return_rows: Literal[False] = False,
) -> Tensor: ...


@overload
def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    teacher_scale: Tensor | None = None,
    temperature: float = 1.0,
    divergence: Divergence = "forward",
    soft_weight: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    check_labels: bool | None = None,
    chunk_bytes: int | None = None,
    return_rows: Literal[True],
) -> Rows: ...


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    teacher_scale: Tensor | None = None,
    temperature: float = 1.0,
    divergence: Divergence = "forward",
    soft_weight: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    check_labels: bool | None = None,
    chunk_bytes: int | None = None,
    return_rows: bool = False,
) -> Tensor | Rows:
    """Sum over rows of `w (soft_weight T^2 D(teacher, student) + hard_weight CE)`, in nats.

    Over the whole vocabulary: the student's logits are `hidden @ weight.T + bias`, the teacher's
    `teacher_hidden @ teacher_weight.T + teacher_bias`, and of neither more than a chunk of rows
    exists. Loss and gradients come from one pass, four matrix products, in the forward pass; the
    backward pass multiplies by the incoming scalar. The teacher's tensors are constants: they get
    no gradient even where they require one, as the parameters of a loaded model do.

    Args:
        hidden: input of the student's head, [N, H], float32, float16, bfloat16 or float64.
        weight: the student's head, [V, H], of the dtype of `hidden` unless autocast is on; frozen
            if it does not require a gradient, and it may be tied.
        teacher_hidden: input of the teacher's head, [N, Ht]: float16, bfloat16, float32 or float64,
            or int8 codes with `teacher_scale`.
        teacher_weight: the teacher's head, [V, Ht], floating. On a GPU its product runs in this
            dtype (float16 and bfloat16 are summed into float32), on a CPU in float32: pass it in
            float32 there, or it is converted at every call.
        bias, teacher_bias: [V], or None.
        teacher_scale: of int8 codes, [N] or [N, G], floating, as `quantize_rows` makes them.
        temperature: T, applied to both sides; the hard loss sees T = 1.
        divergence: `forward`: KL(teacher, student); `reverse`: KL(student, teacher); `js`:
            Jensen-Shannon, the mean of both to their mixture.
        labels: hard labels for CE, [N], int64; `ignore_index` switches the hard loss of a row off.
        row_weight: w, [N], floating; default 1/N. Rows of weight 0 may hold anything on either
            side, add nothing and get zero gradients; on a CPU their logits are not computed.
        check_labels: raise for labels outside the vocabulary. None checks on CPU; elsewhere it
            synchronises. Unchecked, such a row yields NaN.
        chunk_bytes: size of the buffer of the student's logits, as in `linear_topk_kl`; the
            teacher's has as many rows, in float32.
        return_rows: also return the rows of both losses.

    Returns:
        A scalar, float32 (float64 for float64 `hidden`); with `return_rows` the tuple (loss,
        `T^2 D` [N], `CE` [N]), both row tensors unweighted, detached, zero where masked.

    Raises:
        ValueError: wrong shape, device, divergence, temperature or chunk_bytes; int8 codes without
            a scale or the reverse; labels out of range; a gradient asked for `row_weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.

    Source: Hinton et al. 2015, arXiv:1503.02531; T^2 as in its section 2.
    """
    _, v = _linear.check_head(hidden, weight, bias)
    _check_teacher(hidden, v, teacher_hidden, teacher_weight, teacher_bias, teacher_scale)
    _check_options(hidden, labels, temperature, divergence, hard_weight)
    needs = _linear.need(hidden, weight, bias)
    loss, _, _, _, soft, hard = _op(
        hidden,
        weight,
        bias,
        constant(teacher_hidden),
        constant(teacher_weight),
        None if teacher_bias is None else constant(teacher_bias),
        None if teacher_scale is None else constant(teacher_scale),
        checked_row_weight(row_weight, hidden, "hidden", "row_weight"),
        labels,
        float(temperature),
        divergence,
        float(soft_weight),
        float(hard_weight),
        ignore_index,
        hidden.device.type == "cpu" if check_labels is None else check_labels,
        _linear.gemm_dtype(hidden, weight),
        _linear.check_chunk_bytes(chunk_bytes),
        *needs,
    )
    return (loss, soft.detach(), hard.detach()) if return_rows else cast(Tensor, loss)


def _check_teacher(
    hidden: Tensor,
    v: int,
    codes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
) -> None:
    given = {
        "teacher_hidden": codes,
        "teacher_weight": weight,
        "teacher_bias": bias,
        "teacher_scale": scale,
    }
    for name, x in given.items():
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
    _check_scale(codes, scale)


def _check_scale(codes: Tensor, scale: Tensor | None) -> None:
    if (codes.dtype == torch.int8) != (scale is not None):
        raise ValueError(
            "an int8 teacher_hidden needs teacher_scale [N] or [N, G], a float one takes none; got "
            f"{codes.dtype} and scale {'None' if scale is None else tuple(scale.shape)}"
        )
    if scale is None:
        return
    n, h = codes.shape
    groups = scale.shape[1] if scale.dim() == 2 else 1
    if scale.dim() not in (1, 2) or scale.shape[0] != n or not groups or h % groups:
        raise ValueError(
            f"teacher_scale must be [N] or [N, G] with N = {n} and G dividing Ht = {h}; "
            f"got {tuple(scale.shape)}"
        )


def _check_options(
    hidden: Tensor, labels: Tensor | None, temperature: float, divergence: str, hard: float
) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite; got {temperature}")
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}; got {divergence!r}")
    if hard != 0 and labels is None:
        raise ValueError(f"hard_weight={hard} needs labels; got none: pass labels [N]")
    if labels is not None:
        require_shape("labels", labels, (hidden.shape[0],))
        require_dtype("labels", labels, (torch.int64,))
        require_device("labels", labels, hidden, "hidden")


def _backend(logits: Tensor) -> Any:
    """The file that serves these logits, imported when it is first needed."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        from kdcache_kernels.linear_kl import _numba

        return _numba
    if logits.is_cuda and logits.dtype != torch.float64:
        from kdcache_kernels.linear_kl import _triton

        return _triton
    from kdcache_kernels.linear_kl import reference

    return reference


class _Teacher:
    """The teacher's logits, a chunk of rows at a time."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        out: torch.dtype,
    ) -> None:
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


def _body(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    teacher_scale: Tensor | None,
    row_weight: Tensor,
    labels: Tensor | None,
    temperature: float,
    divergence: str,
    soft_weight: float,
    hard_weight: float,
    ignore_index: int,
    check: bool,
    dtype: torch.dtype,
    chunk_bytes: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> Outputs:
    """Return (loss, dX, dW, db, soft rows, hard rows); gradients not needed are empty."""
    if check and labels is not None:
        check_all_labels(labels, weight.shape[0], row_weight, ignore_index)
    spec = Spec(temperature, divergence, soft_weight, hard_weight, ignore_index)
    exact = compute_dtype(hidden)
    teacher = _Teacher(teacher_hidden, teacher_weight, teacher_bias, teacher_scale, exact)

    def kernel(rows: Chunk, logits: Tensor, out: Tensor | None) -> Rows:
        label = None if labels is None else labels[rows]
        found: Rows = _backend(logits).dense_kl(
            logits,
            teacher.logits(rows),
            teacher.bias,
            row_weight[rows],
            label,
            spec,
            out is not None,
        )
        return found

    needs = Need(need_hidden, need_weight, need_bias)
    return _linear.run(hidden, weight, bias, row_weight, needs, dtype, chunk_bytes, kernel)


def _fake(hidden: Tensor, weight: Tensor, *others: Any) -> Outputs:
    return _linear.fake(hidden, weight, Need(*others[-3:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    _linear.keep_gradients(ctx, inputs, output, Need(*inputs[-3:]))


def _backward(ctx: Any, loss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_linear.input_gradients(ctx, "linear_kl", loss), *(None,) * 17)


_op = define("linear_kl", _body, _fake, backward=_backward, setup=_setup)
