"""linear_kl in plain torch: its row kernel, on any device, and the op with whole logits.

Letters: N rows, V classes, H and Ht widths of student and teacher; p teacher, q student.
"""

from typing import TypedDict

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype
from kdcache_kernels.linear_kl.spec import Spec
from kdcache_kernels.topk_kl.reference import _divergence, _hard


class Inputs(TypedDict):
    """Tensors that `linear_kl` takes, as `make_inputs` draws them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor
    labels: Tensor
    row_weight: Tensor


def make_inputs(
    n: int, v: int, h: int, teacher_h: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Inputs:
    """Draw two heads and their inputs; the teacher's logits have a standard deviation of 2.5."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    return {
        "hidden": draw(n, h).to(dtype),
        "weight": (draw(v, h) / h**0.5).to(dtype),
        "bias": (0.1 * draw(v)).to(dtype),
        "teacher_hidden": draw(n, teacher_h).to(dtype),
        "teacher_weight": (2.5 * draw(v, teacher_h) / teacher_h**0.5).to(dtype),
        "teacher_bias": (0.1 * draw(v)).to(dtype),
        "labels": torch.randint(v, (n,), generator=g),
        "row_weight": torch.rand(n, generator=g) + 0.1,
    }


def dense_kl(
    logits: Tensor,
    teacher: Tensor,
    teacher_bias: Tensor | None,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, `T^2 D` [C], `CE` [C]) of the logits of both sides, [C, V].

    `teacher_bias` [V] is added to those of the teacher.

    With `need_grad`, `logits` is overwritten by its gradient. A backend may overwrite `teacher`.
    """
    dtype, live = compute_dtype(logits), weight != 0
    if teacher_bias is not None:
        teacher = teacher + teacher_bias
    x, t = (side.to(dtype).where(live[:, None], 0) for side in (logits, teacher))
    lq, lp = ((side / spec.temperature).log_softmax(1) for side in (x, t))
    terms, pull = _divergence(lp, lq, spec.divergence)
    soft = (spec.temperature**2 * terms.sum(1)).where(live, 0)
    slope = pull - lq.exp() * pull.sum(1, keepdim=True)
    loss, hard, gradient = torch.zeros_like(soft), torch.zeros_like(soft), torch.zeros_like(x)
    if spec.soft_weight:  # times 0, an infinite divergence would be NaN
        loss = spec.soft_weight * soft
        gradient = spec.soft_weight * spec.temperature * slope
    if labels is not None:
        hard, hard_gradient = _hard(x, labels, spec.ignore_index, need_grad)
        hard = hard.where(live, 0)
        if spec.hard_weight:
            loss = loss + spec.hard_weight * hard
            gradient = gradient + spec.hard_weight * hard_gradient if need_grad else gradient
    if need_grad:
        logits.copy_((gradient * weight[:, None]).where(live[:, None], 0))
    return (weight * loss).where(live, 0).sum(), soft, hard


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_logits: Tensor,
    row_weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss and the gradients of `hidden`, `weight` and `bias`, all of one dtype.

    In float64 for float64 inputs. Rows of `row_weight` 0 may hold NaN.
    """
    dtype = compute_dtype(hidden)
    x, w = hidden.to(dtype).masked_fill((row_weight == 0)[:, None], 0), weight.to(dtype)
    g = x @ w.t() if bias is None else x @ w.t() + bias.to(dtype)
    loss, _, _ = dense_kl(
        g, teacher_logits.to(dtype), None, row_weight.to(dtype), labels, spec, True
    )
    return loss, g @ w, g.t() @ x, g.sum(0)


def check_labels(labels: Tensor, v: int, row_weight: Tensor, ignore_index: int) -> None:
    """Raise ValueError for labels out of range in rows of weight other than 0.

    Reads the result back, so a GPU synchronises.
    """
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= v)) & (row_weight != 0)
    rows = outside.nonzero()
    if len(rows):
        row = int(rows[0])
        raise ValueError(
            f"labels must lie in [0, V) with V = {v}, or be ignore_index={ignore_index}; "
            f"row {row} holds {int(labels[row])}"
        )
