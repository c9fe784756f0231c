"""The leanest forms in plain torch: what others could write without a kernel of their own.

The lean eager forms make one tensor of the size of the logits in the forward and leave the rest to
autograd. Those with their own gradient go further: one softmax in the forward, turned into the
gradient in place. Formulas take the tensors that `kernels_inputs` draws and return the mean over
rows; the soft losses include T^2. They lose more digits than `rivals` where a tail is near 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.bench.kernels_inputs import Tensors
from kdcache.bench.rivals import full

Between = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities of teacher and student, [N, K + 1], to the mean divergence."""


def forward_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(teacher, student)."""
    return (logp.exp() * (logp - logq)).sum(1).mean()


def reverse_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(student, teacher)."""
    return forward_kl(logq, logp)


def jensen_shannon(logp: Tensor, logq: Tensor) -> Tensor:
    """Jensen-Shannon divergence."""
    middle = torch.logaddexp(logp, logq) - math.log(2)
    return 0.5 * (forward_kl(logp, middle) + forward_kl(logq, middle))


def _teacher(x: Tensors, temperature: float) -> Tensor:
    """Its log-probabilities of the support and the rest as one class, [N, K + 1], at T."""
    tail = x["tail_logmass"] if temperature == 1 else x["tail_stat"]
    logp = torch.cat([x["logprobs"] / temperature, tail[:, None]], 1)
    return torch.log_softmax(logp, 1)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def bucket(
    x: Tensors,
    *,
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    between: Between = forward_kl,
) -> Tensor:
    """The divergence over the support and the rest: one log-softmax, gather, log1p for the rest."""
    logits = full(x["logits"])
    logq = torch.log_softmax(_tempered(logits, temperature), 1)
    at_ids = logq.gather(1, x["ids64"])
    rest = torch.log1p(-at_ids.exp().sum(1, keepdim=True))
    logp = _teacher(x, temperature).to(logq.dtype)
    loss = temperature**2 * between(logp, torch.cat([at_ids, rest], 1))
    if hard_weight:  # at T = 1 of the log-softmax that is there
        hard = F.nll_loss if temperature == 1 else F.cross_entropy
        loss = loss + hard_weight * hard(logq if temperature == 1 else logits, x["labels"])
    return loss


def bucket_by_hand(
    x: Tensors,
    *,
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    between: Between = forward_kl,
) -> Tensor:
    """`bucket` with its gradient made in the forward, of the softmax, in place.

    Hard labels at T = 1 only, as their softmax is another.
    """
    options = (temperature, hard_weight, between)
    loss: Tensor = _Bucket.apply(x["logits"], x, *options)  # type: ignore[no-untyped-call]  # torch
    return loss


def _turn_into_gradient(
    q: Tensor, x: Tensors, temperature: float, hard_weight: float, between: Between
) -> Tensor:
    """The loss; probabilities `q` [N, V] at T become its gradient by the logits, in place."""
    assert temperature == 1 or not hard_weight
    with torch.enable_grad():
        at_ids = q.gather(1, x["ids64"]).requires_grad_()
        rest = 1 - at_ids.sum(1, keepdim=True)
        logp = _teacher(x, temperature).to(q.dtype)
        loss = temperature**2 * between(logp, torch.cat([at_ids, rest], 1).log())
        (slope,) = torch.autograd.grad(loss, at_ids)
    at_ids, loss = at_ids.detach(), loss.detach()
    pull = slope * at_ids
    hard, labels = hard_weight / len(q), x["labels"][:, None]
    likely = q.gather(1, labels) if hard else None
    q.mul_((hard - pull.sum(1, keepdim=True)) / temperature)
    q.scatter_add_(1, x["ids64"], pull / temperature)
    if likely is None:
        return loss
    q.scatter_add_(1, labels, torch.full_like(likely, -hard))
    return loss - hard * likely.log().sum()


class _Bucket(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensors, temperature: float, *options: Any) -> Tensor:
        q = torch.softmax(_tempered(full(logits), temperature), 1)
        loss = _turn_into_gradient(q, x, temperature, *options)
        ctx.save_for_backward(q.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled(ctx.saved_tensors, grads[0]), None, None, None, None)


def scaled(saved: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor, ...]:
    """Gradients times a scalar, which is mostly 1."""
    return saved if float(factor) == 1 else tuple(gradient * factor for gradient in saved)


def linear_bucket(x: Tensors, *, temperature: float = 1.0) -> Tensor:
    """`bucket` behind a head whose [N, V] logits are held."""
    logits = F.linear(x["hidden"], x["head"], x["bias"])
    return bucket({**x, "logits": logits}, temperature=temperature)


def linear_bucket_by_hand(x: Tensors, *, temperature: float = 1.0) -> Tensor:
    """`bucket_by_hand` behind a head: three matrix products, logits and their softmax held."""
    leaves = (x["hidden"], x["head"], x["bias"])
    loss: Tensor = _LinearBucket.apply(*leaves, x, temperature)  # type: ignore[no-untyped-call]  # torch
    return loss


class _LinearBucket(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor, x: Tensors, temperature: float
    ) -> Tensor:
        logits = full(F.linear(hidden, head, bias))
        if temperature != 1:
            logits.div_(temperature)
        q = torch.softmax(logits, 1)
        del logits
        loss = _turn_into_gradient(q, x, temperature, 0.0, forward_kl)
        _save_head_gradients(ctx, q, hidden, head, bias=True)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled(ctx.saved_tensors, grads[0]), None, None)


def _save_head_gradients(
    ctx: Any, by_logits: Tensor, hidden: Tensor, head: Tensor, *, bias: bool
) -> None:
    by_logits = by_logits.to(head.dtype)
    summed = (by_logits.sum(0),) if bias else ()
    ctx.save_for_backward(by_logits @ head, by_logits.t() @ hidden, *summed)


def linear_kl(x: Tensors, *, temperature: float = 1.0) -> Tensor:
    """KL of both heads' logits as cross-entropy less the teacher's entropy, which has no gradient.

    Of the teacher only probabilities are held.
    """
    with torch.no_grad():
        teacher_logits = full(F.linear(x["teacher_hidden"], x["teacher_head"]))
        p = torch.softmax(_tempered(teacher_logits, temperature), 1)
        negentropy = torch.special.xlogy(p, p).sum(1).mean()
    logits = full(F.linear(x["hidden"], x["head"]))
    loss: Tensor = F.cross_entropy(_tempered(logits, temperature), p) + negentropy
    return temperature**2 * loss


def linear_kl_by_torch(x: Tensors) -> Tensor:
    """`F.linear_cross_entropy` of the teacher's probabilities, made here, less their entropy."""
    with torch.no_grad():
        p = torch.softmax(full(F.linear(x["teacher_hidden"], x["teacher_head"])), 1)
        negentropy = torch.special.xlogy(p, p).sum(1).mean()
    loss: Tensor = F.linear_cross_entropy(x["hidden"], x["head"], p.to(x["head"].dtype))
    total: Tensor = full(loss) + negentropy
    return total


def linear_kl_by_hand(x: Tensors, *, temperature: float = 1.0) -> Tensor:
    """`linear_kl` with its gradient made in the forward, in place."""
    sides = (x["hidden"], x["head"], x["teacher_hidden"], x["teacher_head"])
    loss: Tensor = _LinearKL.apply(*sides, temperature)  # type: ignore[no-untyped-call]  # torch
    return loss


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, *rest: Any) -> Tensor:
        *teacher, temperature = rest
        sides = (full(F.linear(*side)) for side in (teacher, (hidden, head)))
        logp, logq = (torch.log_softmax(_tempered(side, temperature), 1) for side in sides)
        p = logp.exp()
        loss: Tensor = torch.dot(p.view(-1), logp.sub_(logq).view(-1)) * temperature**2 / len(p)
        by_logits = logq.exp_().sub_(p).mul_(temperature / len(p))
        _save_head_gradients(ctx, by_logits, hidden, head, bias=False)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled(ctx.saved_tensors, grads[0]), None, None, None)


def hidden_mse_by_hand(x: Tensors) -> Tensor:
    """Mean squared error of decoded states, turned into its gradient in place."""
    loss: Tensor = _HiddenMSE.apply(x["student"], x["codes"], x["scale"])  # type: ignore[no-untyped-call]  # torch
    return loss


class _HiddenMSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        off = codes.to(full(student).dtype)
        steps = scale.to(off.dtype).reshape(off.numel() // off.shape[-1], -1, 1)
        off.view(len(steps), steps.shape[1], -1).mul_(steps)
        off.sub_(student)
        loss = torch.dot(off.view(-1), off.view(-1)) / off.numel()
        ctx.save_for_backward(off.mul_(-2 / off.numel()).to(student.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled(ctx.saved_tensors, grads[0]), None, None)


def topk_and_tail(x: Tensors, *, k: int) -> tuple[Tensor, ...]:
    """torch.topk and one exponential of the logits' half: its square sums to the tail at T = 1."""
    logits = full(x["logits"])
    top, ids = logits.topk(k, 1)
    shift = top[:, :1]
    half = (logits - shift).mul_(0.5).exp_()
    whole, halves = torch.linalg.vecdot(half, half), half.sum(1)
    at_ids = (0.5 * (top - shift)).exp()
    lse = whole.log()
    tail = torch.log1p(-at_ids.square().sum(1) / whole)
    stat = (halves - at_ids.sum(1)).log() - 0.5 * lse
    return ids, top - shift - lse[:, None], tail, stat


def round_rows(x: Tensors) -> tuple[Tensor, Tensor]:
    """int8 codes and a float16 scale a row, from one division, rounded in place."""
    states = full(x["states"])
    scale = (torch.linalg.vector_norm(states, math.inf, dim=1) / 127).half()
    codes = (states / scale.to(states.dtype)[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scale


BETWEEN: dict[str, Between] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "js": jensen_shannon,
}
