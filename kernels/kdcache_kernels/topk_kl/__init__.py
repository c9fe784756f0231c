"""Kullback-Leibler divergence of a dense student from a sparse, cached teacher."""

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdcache_kernels._autograd import scale_
from kdcache_kernels._backends import dispatched
from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import checked_weight, gradient_dtype
from kdcache_kernels._op import define
from kdcache_kernels._rows import Rows, empty_rows, loss_of
from kdcache_kernels.topk_kl import reference
from kdcache_kernels.topk_kl.arguments import checked_teacher
from kdcache_kernels.topk_kl.spec import Divergence, Spec, Tail, Teacher

__all__ = ["topk_kl", "topk_kl_rows"]

Outputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss, gradient, soft rows, hard rows; a gradient that is not needed has no rows."""


def topk_kl_rows(
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
) -> Rows:
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

    Returns:
        The tuple (loss, `T^2 D` [N], `CE` [N]): a scalar, float32 (float64 for float64 logits), and
        the rows of both parts, unweighted, detached, zero where masked. `topk_kl` returns the loss.

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
    hard, soft = float(hard_weight), float(soft_weight)
    spec = Spec(float(temperature), tail, divergence, soft, hard, ignore_index)
    teacher = checked_teacher(logits, ids, logprobs, tail_logmass, tail_stat, labels, spec)
    need_grad = torch.is_grad_enabled() and logits.requires_grad
    arguments = (
        logits,
        teacher,
        checked_weight(weight, logits, "logits"),
        labels,
        spec,
        logits.device.type == "cpu" if check_ids is None else check_ids,
    )
    if inplace and need_grad and not torch.compiler.is_compiling():
        _check_inplace(logits)
        rows: Rows = _InPlace.apply(*arguments)  # type: ignore[no-untyped-call]  # so in torch
        return rows
    loss, _, soft_rows, hard_rows = _op(*arguments, need_grad)
    return loss, soft_rows, hard_rows


topk_kl = loss_of(topk_kl_rows)


def _check_inplace(logits: Tensor) -> None:
    if logits.dtype == torch.float16:
        raise TypeError("inplace=True takes no float16 logits: their gradient would underflow")
    if logits.is_leaf:
        raise ValueError("inplace=True would overwrite logits that are a leaf of the graph")
    if logits.stride(0) < logits.shape[1] or logits.stride(1) != 1:
        raise ValueError(f"inplace=True needs rows of its own; got strides {logits.stride()}")


kernel = dispatched(reference.topk_kl)


def _body(
    logits: Tensor,
    teacher: Teacher,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    check: bool,
    need_grad: bool,
) -> Outputs:
    shape = (logits.shape[0] if need_grad else 0, logits.shape[1])
    gradient = empty(shape, gradient_dtype(logits), logits.device)
    out = gradient if need_grad else None
    loss, soft, hard = kernel(logits, teacher, weight, labels, spec, out, check)
    return loss, gradient, soft, hard


def _fake(logits: Tensor, *others: Any) -> Outputs:
    loss, soft, hard = empty_rows(logits)
    shape = (logits.shape[0] if others[-1] else 0, logits.shape[1])
    return loss, logits.new_empty(shape, dtype=gradient_dtype(logits)), soft, hard


_op = define("topk_kl", _body, _fake, leaves=1)


def _body_inplace(
    logits: Tensor,
    teacher: Teacher,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    check: bool,
) -> Rows:
    """Write the gradient over `logits`."""
    return kernel(logits, teacher, weight, labels, spec, logits, check)


def _fake_inplace(logits: Tensor, *others: Any) -> Rows:
    return empty_rows(logits)


_op_inplace = define("topk_kl_", _body_inplace, _fake_inplace, mutates=["logits"])


class _InPlace(torch.autograd.Function):
    """`kdcache::topk_kl_` with a backward pass, which works once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *others: Any) -> Rows:
        gradient = logits.detach()
        rows = _op_inplace(gradient, *others)
        torch.autograd.graph.increment_version(gradient)  # others who saved the logits find out
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*rows[1:])
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (scale_(gradient, loss), *(None,) * 5)
