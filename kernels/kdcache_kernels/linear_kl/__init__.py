"""Full-vocabulary divergence from a teacher whose logits are rebuilt from its last hidden state."""

from torch import Tensor

from kdcache_kernels import _head, _linear
from kdcache_kernels._backends import dispatched
from kdcache_kernels._checks import checked_weight, compute_dtype, constant
from kdcache_kernels._head import Products
from kdcache_kernels._linear import Chunk, Outputs
from kdcache_kernels._op import define
from kdcache_kernels._rows import Rows, loss_of
from kdcache_kernels.linear_kl import reference
from kdcache_kernels.linear_kl.spec import Spec, TeacherHead
from kdcache_kernels.linear_kl.teacher import TeacherLogits, check_teacher
from kdcache_kernels.topk_kl import arguments
from kdcache_kernels.topk_kl.spec import Divergence

__all__ = ["linear_kl", "linear_kl_rows"]


def linear_kl_rows(
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
) -> Rows:
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

    Returns:
        The tuple (loss, `T^2 D` [N], `CE` [N]): a scalar, float32 (float64 for float64 `hidden`),
        and the rows of both parts, unweighted, detached, zero where masked. `linear_kl` returns the
        loss.

    Raises:
        ValueError: wrong shape, device, divergence, temperature or chunk_bytes; int8 codes without
            a scale or the reverse; labels out of range; a gradient asked for `row_weight`.
        TypeError: wrong dtype.
        RuntimeError: double backward.

    Source: Hinton et al. 2015, arXiv:1503.02531; T^2 as in its section 2.
    """
    _, v = _head.check_head(hidden, weight, bias)
    teacher = TeacherHead(
        constant(teacher_hidden),
        constant(teacher_weight),
        None if teacher_bias is None else constant(teacher_bias),
        None if teacher_scale is None else constant(teacher_scale),
    )
    check_teacher(teacher, hidden, v)
    arguments.check_numbers(temperature, divergence, hard_weight, labels)
    arguments.check_labels(labels, hidden, "hidden")
    soft, hard = float(soft_weight), float(hard_weight)
    loss, _, _, _, soft_rows, hard_rows = _op(
        hidden,
        weight,
        bias,
        teacher,
        checked_weight(row_weight, hidden, "hidden", "row_weight"),
        labels,
        Spec(float(temperature), divergence, soft, hard, ignore_index),
        hidden.device.type == "cpu" if check_labels is None else check_labels,
        _head.products(hidden, weight, bias, chunk_bytes),
    )
    return loss, soft_rows, hard_rows


linear_kl = loss_of(linear_kl_rows)
kernel = dispatched(reference.dense_kl)


def _body(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: TeacherHead,
    row_weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    check: bool,
    how: Products,
) -> Outputs:
    if check and labels is not None:
        reference.check_labels(labels, weight.shape[0], row_weight, spec.ignore_index)
    made = TeacherLogits(teacher, compute_dtype(hidden))

    def judge(rows: Chunk, logits: Tensor, out: Tensor | None) -> Rows:
        label = None if labels is None else labels[rows]
        need_grad = out is not None
        theirs = made.logits(rows)
        return kernel(logits, theirs, made.bias, row_weight[rows], label, spec, need_grad)

    return _linear.run(hidden, weight, bias, row_weight, how, judge)


_op = define("linear_kl", _body, _linear.fake, leaves=3)
