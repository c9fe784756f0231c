"""Kullback-Leibler divergence of a dense student from a sparse, cached teacher."""

import math
from typing import Any, Literal, TypeAlias, cast, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcache_kernels._autograd import input_gradient, keep_gradient, scale_
from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import (
    FLOATS,
    IDS,
    compute_dtype,
    constant,
    gradient_dtype,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
    row_weight,
)
from kdcache_kernels._op import define
from kdcache_kernels.topk_kl.spec import DIVERGENCES, TAILS, Divergence, Spec, Tail, Teacher

__all__ = ["topk_kl"]

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]
Outputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


@overload
def topk_kl(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    *,
    tail_logmass: Tensor | None = None,
    tail_stat: Tensor | None = None,
    temperature: float = 1.0,
    tail: Tail = "bucket",
    divergence: Divergence = "forward",
    soft_weight: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    check_ids: bool | None = None,
    inplace: bool = False,
    return_rows: Literal[False] = False,
) -> Tensor: ...


@overload
def topk_kl(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    *,
    tail_logmass: Tensor | None = None,
    tail_stat: Tensor | None = None,
    temperature: float = 1.0,
    tail: Tail = "bucket",
    divergence: Divergence = "forward",
    soft_weight: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    check_ids: bool | None = None,
    inplace: bool = False,
    return_rows: Literal[True],
) -> Rows: ...


def topk_kl(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    *,
    tail_logmass: Tensor | None = None,
    tail_stat: Tensor | None = None,
    temperature: float = 1.0,
    tail: Tail = "bucket",
    divergence: Divergence = "forward",
    soft_weight: float = 1.0,
    labels: Tensor | None = None,
    hard_weight: float = 0.0,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    check_ids: bool | None = None,
    inplace: bool = False,
    return_rows: bool = False,
) -> Tensor | Rows:
    """Sum over rows of `w (soft_weight T^2 D(teacher, student) + hard_weight CE)`, in nats.

    The loss and its dense gradient come from one pass over the logits; the backward pass only
    multiplies that gradient by the incoming scalar. Only `logits` gets a gradient: the teacher's
    tensors are constants even where they require one. D is KL(teacher, student) unless
    `divergence` says otherwise.

    Args:
        logits: student, [N, V], float32, float16, bfloat16 or float64; rows at any stride.
        ids: the teacher's support, [N, K], int16, int32, int64 or uint16, in any order, without
            duplicates in a row. -1 pads (65535 in uint16, if V < 65536); a pad's `logprobs` is
            not used.
        logprobs: the teacher's true log-probabilities at temperature 1, [N, K], in nats. -inf
            is a probability of zero.
        tail_logmass: log of the teacher's mass outside the support, [N], in nats. `bucket` needs
            it at T = 1, unless K = V.
        tail_stat: log of the sum of `p^(1/T)` outside the support, [N], for this T. `bucket` and
            `truncate` need it at T != 1, unless K = V.
        temperature: T, applied to both sides. The soft loss is multiplied by T^2, the hard loss
            sees T = 1.
        tail: what becomes of the classes outside the support. `bucket`: one more class on both
            sides, so loss and gradient vanish at student = teacher. `renormalize`: the teacher's
            `p^(1/T)` are divided by their sum over the support, the student keeps the whole
            vocabulary. `truncate`: the sum over the support of `p (log p - log q)`, p as given.
        divergence: `forward`: KL(teacher, student). `reverse`: KL(student, teacher), as in MiniLLM
            (arXiv:2306.08543); infinite where the teacher has a probability of zero. `js`: the
            mean of both to their mixture, Jensen-Shannon. The last two need `bucket`, or K = V.
        labels: hard labels for CE, [N], int64; `ignore_index` switches the hard loss of a row off.
        weight: w, [N], floating: mask, mean and accumulation in one tensor. Default 1/N. A row
            of weight zero is not read, whatever it holds, and its gradient is exactly zero.
        check_ids: raise for ids or labels outside the vocabulary and for duplicates. None checks
            on CPU, where it is free; elsewhere it synchronises. Unchecked, such a row yields NaN
            (duplicates give an undefined value).
        inplace: write the gradient over the logits, which saves a second [N, V]. The logits are
            lost, the backward pass works once, and torch refuses it to others who need them. For
            float32, bfloat16 and float64; float16 gradients would underflow. Without gradients the
            logits are left alone, and under torch.compile, which plans its buffers itself.
        return_rows: also return the rows of both losses, without a second pass.

    Returns:
        A scalar, float32 (float64 for float64 logits); with `return_rows` the tuple (loss,
        `T^2 D` [N], `CE` [N]), both row tensors unweighted, detached, zero where masked.

    Raises:
        ValueError: wrong shape, device, tail mode or temperature; a missing tail statistic; ids
            or labels out of range or duplicated; a gradient asked for `weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.

    `bucket` at any T, and `truncate` at T != 1, divide the teacher by its own total (support and
    tail), so probabilities that sum to one only up to storage error still give KL >= 0.
    The gradient of float16 logits is kept in float32 until the backward pass, so that a loss
    scaler still finds it.
    Source: Hinton et al. 2015, arXiv:1503.02531; T^2 as in its section 2.
    """
    _check_tensors(logits, ids, logprobs, labels)
    _check_options(temperature, tail, labels, hard_weight)
    _check_divergence(divergence, tail, ids.shape[1] == logits.shape[1])
    need_grad = torch.is_grad_enabled() and logits.requires_grad
    arguments = (
        logits,
        ids,
        constant(logprobs),
        _tail_statistic(logits, ids, tail_logmass, tail_stat, temperature, tail),
        row_weight(weight, logits, "logits"),
        labels,
        float(temperature),
        tail,
        divergence,
        float(soft_weight),
        float(hard_weight),
        ignore_index,
        logits.device.type == "cpu" if check_ids is None else check_ids,
    )
    if inplace and need_grad and not torch.compiler.is_compiling():
        _check_inplace(logits)
        loss, soft, hard = _InPlace.apply(*arguments)  # type: ignore[no-untyped-call]  # so in torch
    else:
        loss, _, soft, hard = _op(*arguments, need_grad)
    return (loss, soft.detach(), hard.detach()) if return_rows else cast(Tensor, loss)


def _check_tensors(logits: Tensor, ids: Tensor, logprobs: Tensor, labels: Tensor | None) -> None:
    require_matrix("logits", logits)
    require_dtype("logits", logits, FLOATS)
    require_matrix("ids", ids)
    require_dtype("ids", ids, IDS)
    n, v = logits.shape
    if ids.shape[0] != n or not 1 <= ids.shape[1] <= v:
        raise ValueError(
            f"ids must be [N, K] with N = {n} rows like logits and 1 <= K <= V = {v}; "
            f"got {tuple(ids.shape)}"
        )
    require_shape("logprobs", logprobs, tuple(ids.shape))
    require_dtype("logprobs", logprobs, FLOATS)
    if labels is not None:
        require_shape("labels", labels, (n,))
        require_dtype("labels", labels, (torch.int64,))
    for name, x in (("ids", ids), ("logprobs", logprobs), ("labels", labels)):
        if x is not None:
            require_device(name, x, logits, "logits")


def _check_options(temperature: float, tail: str, labels: Tensor | None, hard: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite; got {temperature}")
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {', '.join(TAILS)}; got {tail!r}")
    if hard != 0 and labels is None:
        raise ValueError(f"hard_weight={hard} needs labels; got none: pass labels [N]")


def _check_divergence(divergence: str, tail: str, whole: bool) -> None:
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}; got {divergence!r}")
    if divergence != "forward" and tail != "bucket" and not whole:
        raise ValueError(
            f"divergence={divergence!r} needs the student's mass outside the support: "
            f"use tail='bucket'; got tail={tail!r}"
        )


def _check_inplace(logits: Tensor) -> None:
    if logits.dtype == torch.float16:
        raise TypeError("inplace=True takes no float16 logits: their gradient would underflow")
    if logits.is_leaf:
        raise ValueError("inplace=True would overwrite logits that are a leaf of the graph")
    if logits.stride(0) < logits.shape[1] or logits.stride(1) != 1:
        raise ValueError(f"inplace=True needs rows of its own; got strides {logits.stride()}")


def _tail_statistic(
    logits: Tensor,
    ids: Tensor,
    logmass: Tensor | None,
    stat: Tensor | None,
    temperature: float,
    tail: str,
) -> Tensor | None:
    """Choose the statistic that this mode needs at this T; None where there is no tail."""
    for name, x in (("tail_logmass", logmass), ("tail_stat", stat)):
        if x is not None:
            require_shape(name, x, (logits.shape[0],))
            require_dtype(name, x, FLOATS)
            require_device(name, x, logits, "logits")
    if tail == "renormalize" or (tail == "truncate" and temperature == 1):
        return None
    name, x = ("tail_logmass", logmass) if temperature == 1 else ("tail_stat", stat)
    if x is None and ids.shape[1] != logits.shape[1]:
        what = "sum of p" if temperature == 1 else f"sum of p^(1/{temperature:g})"
        raise ValueError(
            f"tail={tail!r} at temperature {temperature:g} needs {name} [N], the log of the {what} "
            "outside the support; got None: pass it, or choose tail='renormalize'"
        )
    return None if x is None else constant(x)


def _backend(logits: Tensor) -> Any:
    """The file that serves these logits, imported when it is first needed."""
    if logits.device.type == "cpu" and logits.dtype != torch.float64:
        from kdcache_kernels.topk_kl import _numba

        return _numba
    if logits.is_cuda and logits.dtype != torch.float64:
        from kdcache_kernels.topk_kl import _triton

        return _triton
    from kdcache_kernels.topk_kl import reference

    return reference


def _body(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    rest: Tensor | None,
    weight: Tensor,
    labels: Tensor | None,
    temperature: float,
    tail: str,
    divergence: str,
    soft_weight: float,
    hard_weight: float,
    ignore_index: int,
    check: bool,
    need_grad: bool,
) -> Outputs:
    """Return (loss, gradient, soft rows, hard rows); the gradient is empty if not needed."""
    teacher = Teacher(ids, logprobs, rest)
    spec = Spec(temperature, tail, divergence, soft_weight, hard_weight, ignore_index)
    shape = (logits.shape[0] if need_grad else 0, logits.shape[1])
    gradient = empty(shape, gradient_dtype(logits), logits.device)
    out = gradient if need_grad else None
    loss, soft, hard = _backend(logits).topk_kl(logits, teacher, weight, labels, spec, out, check)
    return loss, gradient, soft, hard


def _fake(
    logits: Tensor, ids: Tensor, logprobs: Tensor, rest: Tensor | None, weight: Tensor, *others: Any
) -> Outputs:
    dtype = compute_dtype(logits)
    shape = (logits.shape[0] if others[-1] else 0, logits.shape[1])
    gradient = logits.new_empty(shape, dtype=gradient_dtype(logits))
    rows = [
        logits.new_empty(size, dtype=dtype) for size in ((), logits.shape[:1], logits.shape[:1])
    ]
    return rows[0], gradient, rows[1], rows[2]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    keep_gradient(ctx, output, made=inputs[-1], dtype=inputs[0].dtype)


def _backward(ctx: Any, loss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    return (input_gradient(ctx, "topk_kl", loss), *(None,) * 13)


_op = define("topk_kl", _body, _fake, backward=_backward, setup=_setup)


def _body_inplace(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    rest: Tensor | None,
    weight: Tensor,
    labels: Tensor | None,
    temperature: float,
    tail: str,
    divergence: str,
    soft_weight: float,
    hard_weight: float,
    ignore_index: int,
    check: bool,
) -> Rows:
    """Write the gradient over `logits`; return (loss, soft rows, hard rows)."""
    teacher = Teacher(ids, logprobs, rest)
    spec = Spec(temperature, tail, divergence, soft_weight, hard_weight, ignore_index)
    rows: Rows = _backend(logits).topk_kl(logits, teacher, weight, labels, spec, logits, check)
    return rows


def _fake_inplace(logits: Tensor, *others: Any) -> Rows:
    dtype = compute_dtype(logits)
    rows = [
        logits.new_empty(size, dtype=dtype) for size in ((), logits.shape[:1], logits.shape[:1])
    ]
    return rows[0], rows[1], rows[2]


_op_inplace = define("topk_kl_", _body_inplace, _fake_inplace, mutates=["logits"])


class _InPlace(torch.autograd.Function):
    """`kdcache::topk_kl_` with a backward pass, which works once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *others: Any) -> Rows:
        gradient = logits.detach()
        rows: Rows = _op_inplace(gradient, *others)
        torch.autograd.graph.increment_version(gradient)  # others who saved the logits find out
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*rows[1:])
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (scale_(gradient, loss), *(None,) * 12)
