"""The same losses as others write them, in plain torch, and those of other packages.

Every formula takes the tensors that `kernels_inputs` draws and returns the mean over rows, so it
can stand in for one of our ops; in float64 the plain ones are the oracle that everything, ours
included, is checked against. T is `temperature`; the soft losses include T^2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.bench.kernels_inputs import Tensors


def full(x: Tensor) -> Tensor:
    """`x` in the precision of the arithmetic: float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def bucket(x: Tensors, *, temperature: float = 1.0, hard_weight: float = 0.0) -> Tensor:
    """KL over the support and one more class for the rest, from a log-softmax of the logits."""
    logits = full(x["logits"])
    logp, logq = _buckets(x, logits, temperature)
    soft = _sum(logp.exp() * (logp - logq))
    return temperature**2 * soft + _hard(logits, x["labels"], hard_weight)


def trl(x: Tensors, *, temperature: float = 1.0, hard_weight: float = 0.0) -> Tensor:
    """As TRL's server distillation with a tail: the rest is 1 - sum(p) on both sides.

    The teacher's log-probabilities come at T ready made, as from a server. TRL leaves T^2 out; it
    is put in here. Source: trl.experimental.server_distillation, forward KL (beta = 0).
    """
    logits = full(x["logits"])
    logq = torch.log_softmax(logits / temperature, 1).gather(1, x["ids64"])
    logp, logq = (_with_tail(side) for side in (x["tempered"].to(logq.dtype), logq))
    soft = temperature**2 * _sum(logp.exp() * (logp - logq))
    return soft + _hard(logits, x["labels"], hard_weight)


def _with_tail(logp: Tensor) -> Tensor:
    mass = logp.logsumexp(1, keepdim=True).clamp(max=-1e-7)  # 1 - mass must not be 0
    return torch.cat([logp, torch.log(-torch.expm1(mass))], 1)


def axolotl(x: Tensors, *, temperature: float = 1.0, hard_weight: float = 0.0) -> Tensor:
    """As axolotl's top-k KD: the teacher renormalised over its support, the student whole.

    Source: axolotl.integrations.kd.topk_logprob.forward_kl; T^2 as in its trainer.
    """
    logits = full(x["logits"])
    scaled = logits / temperature
    logq = scaled.gather(1, x["ids64"]) - scaled.logsumexp(1, keepdim=True)
    logp = torch.log_softmax((x["logprobs"] / temperature).to(logq.dtype), 1)
    soft = temperature**2 * _sum(logp.exp() * (logp - logq))
    return soft + _hard(logits, x["labels"], hard_weight)


def dense_kl(x: Tensors, *, temperature: float = 1.0) -> Tensor:
    """KL over the whole vocabulary, from the teacher's dense log-probabilities."""
    logq = torch.log_softmax(full(x["logits"]) / temperature, 1)
    return temperature**2 * _kl(full(x["dense"]), logq)


def dense_js(x: Tensors) -> Tensor:
    """Jensen-Shannon divergence over the whole vocabulary at T = 1."""
    return _jensen_shannon(full(x["dense"]), torch.log_softmax(full(x["logits"]), 1))


def dense_reverse(x: Tensors) -> Tensor:
    """KL(student, teacher) over the whole vocabulary at T = 1."""
    return _kl(torch.log_softmax(full(x["logits"]), 1), full(x["dense"]))


def bucket_js(x: Tensors) -> Tensor:
    """Jensen-Shannon divergence over the support and one more class, at T = 1."""
    return _jensen_shannon(*_buckets(x, full(x["logits"])))


def bucket_reverse(x: Tensors) -> Tensor:
    """KL(student, teacher) over the support and one more class, at T = 1."""
    logp, logq = _buckets(x, full(x["logits"]))
    return _kl(logq, logp)


def _buckets(x: Tensors, logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student, [N, K + 1], the last of all the rest."""
    logq = torch.log_softmax(logits / temperature, 1)
    rest = logq.scatter(1, x["ids64"], -math.inf).logsumexp(1, keepdim=True)
    tail = x["tail_logmass"] if temperature == 1 else x["tail_stat"]
    logp = torch.cat([x["logprobs"] / temperature, tail[:, None]], 1).to(logq.dtype)
    return torch.log_softmax(logp, 1), torch.cat([logq.gather(1, x["ids64"]), rest], 1)


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    return F.kl_div(logq, logp, reduction="batchmean", log_target=True)


def _jensen_shannon(logp: Tensor, logq: Tensor) -> Tensor:
    middle = torch.logaddexp(logp, logq) - math.log(2)
    return 0.5 * (_kl(logp, middle) + _kl(logq, middle))


def _sum(terms: Tensor) -> Tensor:
    return terms.sum(1).mean()


def _hard(logits: Tensor, labels: Tensor, weight: float) -> Tensor:
    return weight * F.cross_entropy(logits, labels) if weight else logits.new_zeros(())


def with_head(x: Tensors) -> Tensors:
    """The inputs with the student's logits, made by its head and bias."""
    return {**x, "logits": F.linear(x["hidden"], x["head"], x["bias"])}


def linear_bucket(x: Tensors, *, temperature: float = 1.0) -> Tensor:
    """`bucket` behind a head whose [N, V] logits are held."""
    return bucket(with_head(x), temperature=temperature)


def linear_axolotl(x: Tensors) -> Tensor:
    """`axolotl` behind a head whose [N, V] logits are held."""
    return axolotl(with_head(x))


def linear_cross_entropy(x: Tensors) -> Tensor:
    """Cross-entropy of the teacher's dense probabilities, the student's logits held."""
    return F.cross_entropy(full(with_head(x)["logits"]), full(x["probabilities"]))


def linear_dense_kl(x: Tensors, *, temperature: float = 1.0) -> Tensor:
    """KL over the whole vocabulary, both sides' [N, V] logits made by their heads and held."""
    return temperature**2 * _kl(*_from_heads(x, temperature))


def linear_dense_js(x: Tensors) -> Tensor:
    """Jensen-Shannon divergence at T = 1, from both sides' heads; their [N, V] logits are held."""
    return _jensen_shannon(*_from_heads(x, 1.0))


def _from_heads(x: Tensors, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student, [N, V]."""
    heads = ((x["teacher_hidden"], x["teacher_head"]), (x["hidden"], x["head"]))
    logp, logq = (torch.log_softmax(full(F.linear(*head)) / temperature, 1) for head in heads)
    return logp, logq


def axolotl_chunked(x: Tensors) -> Tensor:
    """As axolotl's fused linear KD at T = 1: loss and gradients in the forward, by chunks of rows.

    The gradient of the head is summed in the head's own dtype. At T != 1 axolotl multiplies the
    loss by T^2 and leaves its gradient T^2 times too small, so only T = 1 is run. Source:
    axolotl.integrations.kd.kernels.liger, with the student over its whole vocabulary.
    """
    rest = (x["ids64"], x["logprobs"], x["labels"])
    loss: Tensor = _AxolotlChunked.apply(x["hidden"], x["head"], x["bias"], *rest)  # type: ignore[no-untyped-call]  # so in torch
    return loss


class _AxolotlChunked(torch.autograd.Function):
    ROWS = 1024

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
        sums, parts = [torch.zeros_like(head), torch.zeros_like(bias)], []
        loss = hidden.new_zeros((), dtype=torch.float32)
        for chunk in zip(*(t.split(_AxolotlChunked.ROWS) for t in (hidden, *rest)), strict=True):
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in (chunk[0], head, bias)]
                names = ("hidden", "head", "bias", "ids64", "logprobs", "labels")
                part = linear_axolotl(dict(zip(names, (*leaves, *chunk[1:]), strict=True)))
                part = part * (len(chunk[0]) / len(hidden))
                gradients = torch.autograd.grad(part, leaves)
            parts.append(gradients[0])
            for total, gradient in zip(sums, gradients[1:], strict=True):
                total.add_(gradient)
            loss += part.detach()
        ctx.save_for_backward(torch.cat(parts), *sums)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        if not torch.equal(grads[0], torch.ones_like(grads[0])):
            saved = tuple(gradient * grads[0] for gradient in saved)
        return (*saved, None, None, None)


def torch_linear_cross_entropy(x: Tensors) -> Tensor:
    """torch's `F.linear_cross_entropy` with the teacher's dense probabilities, [N, V].

    Its gradient is that of the KL; its value is larger by the teacher's entropy. Needs torch 2.13,
    whose chunked path takes class indices only: with probabilities the logits are held.
    """
    loss: Tensor = F.linear_cross_entropy(
        x["hidden"], x["head"], x["probabilities"], linear_bias=x["bias"]
    )
    return loss


def liger_kl_div(x: Tensors, *, temperature: float = 1.0) -> Tensor:
    """Liger's KL of a dense teacher; the student's log-softmax is outside of it."""
    from liger_kernel.ops.kl_div import LigerKLDivLossFunction

    logq = torch.log_softmax(x["logits"] / temperature, 1)
    loss: Tensor = LigerKLDivLossFunction.apply(logq, x["dense"], "batchmean", True)
    return temperature**2 * loss


BETA = {"forward": 0.0, "js": 0.5, "reverse": 1.0}  # Liger's names of the divergences


def liger_jsd(x: Tensors, *, beta: float) -> Tensor:
    """Liger's generalised Jensen-Shannon divergence of a dense teacher at T = 1; beta 0: KL."""
    from liger_kernel.ops.jsd import LigerJSDFunction

    logq = torch.log_softmax(x["logits"].float(), 1)
    loss: Tensor = LigerJSDFunction.apply(logq, x["dense"].float(), None, beta)
    return loss


def liger_fused_linear_jsd(x: Tensors, *, beta: float) -> Tensor:
    """Liger's fused linear JSD, both sides' logits made chunk by chunk; at beta 0 the KL."""
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    loss: Tensor = LigerFusedLinearJSDFunction.apply(
        x["hidden"], x["head"], x["teacher_hidden"], x["teacher_head"], None, beta
    )
    return loss


def hidden_mse(x: Tensors, *, normalize: str = "none") -> Tensor:
    """Mean squared error of decoded teacher states, [N, H] or [L, N, H]; sides normalised first."""
    student = full(x["student"]).flatten(0, -2)
    codes = x["codes"].flatten(0, -2).to(student.dtype)
    n, h = codes.shape
    steps = x["scale"].reshape(n, -1, 1).to(student.dtype)
    sides = student, (codes.view(n, steps.shape[1], -1) * steps).view(n, h)
    if normalize == "l2":
        sides = F.normalize(sides[0], dim=1), F.normalize(sides[1], dim=1)
    elif normalize == "layernorm":
        sides = F.layer_norm(sides[0], (h,), eps=1e-12), F.layer_norm(sides[1], (h,), eps=1e-12)
    return F.mse_loss(*sides)


def topk_and_tail(x: Tensors, *, k: int, temperature: float = 2.0) -> tuple[Tensor, ...]:
    """torch.topk and logsumexp: ids, log-probabilities and both statistics of the rest."""
    logits = full(x["logits"])
    lse = logits.logsumexp(1, keepdim=True)
    top, ids = logits.topk(k, 1)
    rest = logits.scatter(1, ids, -math.inf)
    tail = rest.logsumexp(1) - lse[:, 0]
    stat = (rest / temperature).logsumexp(1) - lse[:, 0] / temperature
    return ids, top - lse, tail, stat


def round_rows(x: Tensors) -> tuple[Tensor, Tensor]:
    """int8 codes and a float16 scale a row."""
    states = full(x["states"])
    scale = (states.abs().amax(1) / 127).half()
    step = scale.to(states.dtype)[:, None]
    return (states / step).round().clamp(-127, 127).to(torch.int8), scale
