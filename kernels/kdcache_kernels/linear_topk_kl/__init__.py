"""Divergence of a student from a sparse, cached teacher, straight from the head's input."""

from typing import Any, Literal, TypeAlias, cast, overload

import torch
from torch import Tensor

from kdcache_kernels import _linear
from kdcache_kernels._checks import constant
from kdcache_kernels._checks import row_weight as checked_row_weight
from kdcache_kernels._linear import Chunk, Need, Outputs
from kdcache_kernels._op import define
from kdcache_kernels.topk_kl import (
    _backend,
    _check_divergence,
    _check_options,
    _check_tensors,
    _tail_statistic,
)
from kdcache_kernels.topk_kl.reference import check_ids as check_all_ids
from kdcache_kernels.topk_kl.spec import Divergence, Spec, Tail, Teacher

__all__ = ["linear_topk_kl"]

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]


@overload
def linear_topk_kl(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    row_weight: Tensor | None = None,
    check_ids: bool | None = None,
    chunk_bytes: int | None = None,
    return_rows: Literal[False] = False,
) -> Tensor: ...


@overload
def linear_topk_kl(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    row_weight: Tensor | None = None,
    check_ids: bool | None = None,
    chunk_bytes: int | None = None,
    return_rows: Literal[True],
) -> Rows: ...


def linear_topk_kl(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    row_weight: Tensor | None = None,
    check_ids: bool | None = None,
    chunk_bytes: int | None = None,
    return_rows: bool = False,
) -> Tensor | Rows:
    """`topk_kl` of the logits `hidden @ weight.T + bias`, of which only a chunk ever exists.

    The logits of a chunk of rows are written into one buffer, turned into their gradient there,
    and used up by the two products of a linear layer's backward pass, all within the forward
    pass; the backward pass multiplies by the incoming scalar. That is three matrix products, as
    many as the unfused way, without its [N, V] logits and their gradient.

    Args:
        hidden: input of the student's head, [N, H], float32, float16, bfloat16 or float64.
        weight: the head's, [V, H], of the dtype of `hidden` unless autocast is on. Without
            `requires_grad` (a frozen head) the product for its gradient is left out; it may be
            tied to the embeddings, whose own gradient autograd adds.
        bias: [V], or None.
        ids, logprobs, tail_logmass, tail_stat: the teacher, as in `topk_kl`.
        temperature, tail, divergence, soft_weight, labels, hard_weight, ignore_index, check_ids:
            as in `topk_kl`.
        row_weight: what `topk_kl` calls `weight`, [N]; default 1/N. Rows of weight 0 may hold
            anything, add nothing and get zero gradients; on a CPU their logits are not computed.
        chunk_bytes: size of the buffer of logits, rounded down to whole rows, at least one.
            None: 64 MiB on a CPU, 1 GiB elsewhere but at most 4,096 rows; 256 rows if those are
            more.
        return_rows: also return the rows of both losses.

    Returns:
        A scalar, float32 (float64 for float64 `hidden`); with `return_rows` the tuple (loss,
        `T^2 D` [N], `CE` [N]), both row tensors unweighted, detached, zero where masked.

    Raises:
        ValueError: wrong shape, device, tail mode, temperature or chunk_bytes; a missing tail
            statistic; ids or labels out of range or duplicated; a gradient asked for `row_weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.

    The matrix products run in the dtype of autocast, else of `hidden`; in float32 for float16, and
    on a CPU for bfloat16. The gradients of `weight` and `bias` are summed in float32 over all rows.
    They take [V, H] and [V] until the backward pass is over. Peak memory beyond inputs and
    gradients: the buffer, and `weight` once more where it has to change its dtype or, on a GPU,
    where V is no multiple of 64: products are slow there, so it gets rows of zeros.
    Source: the chunks are those of Liger-Kernel's fused linear cross-entropy, arXiv:2410.10989.
    """
    n, v = _linear.check_head(hidden, weight, bias)
    shape = hidden.detach().new_empty(1).expand(n, v)  # stands for the logits; one element large
    _check_tensors(shape, ids, logprobs, labels)
    _check_options(temperature, tail, labels, hard_weight)
    _check_divergence(divergence, tail, ids.shape[1] == v)
    needs = _linear.need(hidden, weight, bias)
    loss, _, _, _, soft, hard = _op(
        hidden,
        weight,
        bias,
        ids,
        constant(logprobs),
        _tail_statistic(shape, ids, tail_logmass, tail_stat, temperature, tail),
        checked_row_weight(row_weight, hidden, "hidden", "row_weight"),
        labels,
        float(temperature),
        tail,
        divergence,
        float(soft_weight),
        float(hard_weight),
        ignore_index,
        hidden.device.type == "cpu" if check_ids is None else check_ids,
        _linear.gemm_dtype(hidden, weight),
        _linear.check_chunk_bytes(chunk_bytes),
        *needs,
    )
    return (loss, soft.detach(), hard.detach()) if return_rows else cast(Tensor, loss)


def _body(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    logprobs: Tensor,
    rest: Tensor | None,
    row_weight: Tensor,
    labels: Tensor | None,
    temperature: float,
    tail: str,
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
    spec = Spec(temperature, tail, divergence, soft_weight, hard_weight, ignore_index)

    def kernel(rows: Chunk, logits: Tensor, out: Tensor | None) -> Rows:
        teacher = Teacher(ids[rows], logprobs[rows], None if rest is None else rest[rows])
        label = None if labels is None else labels[rows]
        found: Rows = _backend(logits).topk_kl(
            logits, teacher, row_weight[rows], label, spec, out, check
        )
        return found

    needs = Need(need_hidden, need_weight, need_bias)
    try:
        return _linear.run(hidden, weight, bias, row_weight, needs, dtype, chunk_bytes, kernel)
    except ValueError:
        # It names a row of its chunk; say which row of all.
        whole = torch.empty(0, weight.shape[0], device="meta")
        check_all_ids(whole, ids, labels, row_weight, ignore_index)
        raise


def _fake(hidden: Tensor, weight: Tensor, *others: Any) -> Outputs:
    return _linear.fake(hidden, weight, Need(*others[-3:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    _linear.keep_gradients(ctx, inputs, output, Need(*inputs[-3:]))


def _backward(ctx: Any, loss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_linear.input_gradients(ctx, "linear_topk_kl", loss), *(None,) * 17)


_op = define("linear_topk_kl", _body, _fake, backward=_backward, setup=_setup)
