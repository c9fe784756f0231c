"""Divergence of a student from a sparse, cached teacher, straight from the head's input."""

import torch
from torch import Tensor

from kdcache_kernels import _head, _linear
from kdcache_kernels._checks import checked_weight
from kdcache_kernels._head import Products
from kdcache_kernels._linear import Chunk, Outputs
from kdcache_kernels._op import define
from kdcache_kernels._rows import Rows, loss_of
from kdcache_kernels.topk_kl import kernel
from kdcache_kernels.topk_kl.arguments import checked_teacher
from kdcache_kernels.topk_kl.reference import check_ids as check_all_ids
from kdcache_kernels.topk_kl.spec import Divergence, Spec, Tail, Teacher

__all__ = ["linear_topk_kl", "linear_topk_kl_rows"]


def linear_topk_kl_rows(
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
) -> Rows:
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
            more. On a GPU the rows are halved, down to 256, until they take a quarter of the memory
            that is free at most, unless a graph is captured: state a size where a gradient has to
            have the same bits whatever else is in memory.

    Returns:
        The tuple (loss, `T^2 D` [N], `CE` [N]): a scalar, float32 (float64 for float64 `hidden`),
        and the rows of both parts, unweighted, detached, zero where masked. `linear_topk_kl`
        returns the loss.

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
    n, v = _head.check_head(hidden, weight, bias)
    logits = hidden.detach().new_empty(1).expand(n, v)  # stands for them; one element large
    hard, soft = float(hard_weight), float(soft_weight)
    spec = Spec(float(temperature), tail, divergence, soft, hard, ignore_index)
    teacher = checked_teacher(logits, ids, logprobs, tail_logmass, tail_stat, labels, spec)
    loss, _, _, _, soft_rows, hard_rows = _op(
        hidden,
        weight,
        bias,
        teacher,
        checked_weight(row_weight, hidden, "hidden", "row_weight"),
        labels,
        spec,
        hidden.device.type == "cpu" if check_ids is None else check_ids,
        _head.products(hidden, weight, bias, chunk_bytes),
    )
    return loss, soft_rows, hard_rows


linear_topk_kl = loss_of(linear_topk_kl_rows)


def _body(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: Teacher,
    row_weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    check: bool,
    how: Products,
) -> Outputs:
    def judge(rows: Chunk, logits: Tensor, out: Tensor | None) -> Rows:
        ids, logprobs, rest = teacher
        part = Teacher(ids[rows], logprobs[rows], None if rest is None else rest[rows])
        label = None if labels is None else labels[rows]
        return kernel(logits, part, row_weight[rows], label, spec, out, check)

    try:
        return _linear.run(hidden, weight, bias, row_weight, how, judge)
    except ValueError:
        # It names a row of its chunk; say which row of all.
        whole = torch.empty(0, weight.shape[0], device="meta")
        check_all_ids(whole, teacher.ids, labels, row_weight, spec.ignore_index)
        raise


_op = define("linear_topk_kl", _body, _linear.fake, leaves=3)
