"""topk_kl in plain torch, on any device and in float64 too: the oracle of the other backends.

Letters: N rows, V classes, K ids a row; p teacher, q student; S the support, t the rest.
"""

import math
from typing import TypedDict

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype
from kdcache_kernels.topk_kl.spec import Spec, Teacher

INF = float("inf")


class Inputs(TypedDict):
    """Tensors that `topk_kl` takes, as `make_inputs` draws them."""

    logits: Tensor
    ids: Tensor
    logprobs: Tensor
    tail_logmass: Tensor
    tail_stat: Tensor
    labels: Tensor
    weight: Tensor


def make_inputs(
    n: int,
    v: int,
    k: int,
    *,
    dtype: torch.dtype = torch.float32,
    ids_dtype: torch.dtype = torch.int64,
    temperature: float = 2.0,
    pads: int = 0,
    seed: int = 0,
) -> Inputs:
    """Draw a student, a teacher's exact top-k with `pads` ids of each row removed, and weights.

    `tail_stat` is for `temperature`; the teacher is drawn and cut in float64.
    """
    g = torch.Generator().manual_seed(seed)
    logp = torch.log_softmax(2.5 * torch.randn(n, v, generator=g, dtype=torch.float64), 1)
    logprobs, ids = logp.topk(k, 1)
    if pads:
        ids[:, k - pads :], logprobs[:, k - pads :] = -1, -INF
    support = torch.zeros(n, v + 1, dtype=torch.bool).scatter_(1, ids.where(ids >= 0, v), True)
    rest = logp.masked_fill(support[:, :v], -INF)
    noise = torch.randn(n, v, generator=g, dtype=torch.float64)
    return {
        "logits": (logp + noise).to(dtype),
        "ids": ids.to(ids_dtype),
        "logprobs": logprobs.float(),
        "tail_logmass": rest.logsumexp(1).float(),
        "tail_stat": (rest / temperature).logsumexp(1).float(),
        "labels": torch.randint(v, (n,), generator=g),
        "weight": torch.rand(n, generator=g) + 0.1,
    }


def topk_kl(
    logits: Tensor,
    teacher: Teacher,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    out: Tensor | None,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, `T^2 D` [N], `CE` [N]); write the gradient into `out` [N, V] if there is one.

    `out` has any float dtype and row stride, and may be `logits` itself. With `check`, ids and
    labels out of range raise ValueError.
    """
    if check:
        check_ids(logits, teacher.ids, labels, weight, spec.ignore_index)
    dtype = compute_dtype(logits)
    live = weight != 0
    x = logits.to(dtype).where(live[:, None], 0)  # a masked row may hold NaN
    top = x.amax(1, keepdim=True)
    x = x - top.where(top.isfinite(), 0)  # or the normaliser of large logits loses its digits
    need_grad = out is not None
    soft, soft_grad = _soft(x, teacher, spec, need_grad)
    soft, loss = soft.where(live, 0), torch.zeros_like(soft)
    if spec.soft_weight:
        loss = loss + spec.soft_weight * soft
    gradient = spec.soft_weight * soft_grad if spec.soft_weight else torch.zeros_like(soft_grad)
    hard = torch.zeros_like(soft)
    if labels is not None:
        hard, hard_grad = _hard(x, labels, spec.ignore_index, need_grad)
        hard = hard.where(live, 0)
        if spec.hard_weight:
            loss = loss + spec.hard_weight * hard
            gradient = gradient + spec.hard_weight * hard_grad
    total = (weight * loss).where(live, 0).sum()
    if out is not None:
        out.copy_((gradient * weight[:, None]).where(live[:, None], 0))
    return total, soft, hard


def _support(ids: Tensor, v: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids with V for a pad [N, K], membership [N, V], and rows with an id out of range."""
    pad = 65535 if ids.dtype == torch.uint16 and v < 65536 else -1
    j = ids.to(torch.int64)
    inside = (j >= 0) & (j < v)
    bad = (~inside & (j != pad)).any(1)
    j = j.where(inside, v)
    member = torch.zeros(j.shape[0], v + 1, dtype=torch.bool, device=j.device).scatter_(1, j, True)
    return j, member[:, :v], bad


def _soft(x: Tensor, teacher: Teacher, spec: Spec, need_grad: bool) -> tuple[Tensor, Tensor]:
    """Rows of `T^2 D`, and their gradient by the logits."""
    n, v = x.shape
    temperature = spec.temperature
    j, member, bad = _support(teacher.ids, v)
    pads = j == v
    logprobs = teacher.logprobs.to(x.dtype).masked_fill(pads, -INF)
    lp, lp_tail = _teacher(logprobs / temperature, teacher.rest, spec)
    z = x / temperature
    z_support = z.gather(1, j.where(~pads, 0)).masked_fill(pads, -INF)
    z_rest = z.masked_fill(member, -INF)
    # The rest is summed on its own: 1 - sum(q) would cancel for a confident student.
    lse_rest = z_rest.logsumexp(1)
    lse = torch.logaddexp(z_support.logsumexp(1), lse_rest)
    lq, lq_tail = z_support - lse[:, None], lse_rest - lse
    # One column more than the support: the tail as a class.
    lp, lq = torch.cat([lp, lp_tail[:, None]], 1), torch.cat([lq, lq_tail[:, None]], 1)
    terms, pull = _divergence(lp, lq, spec.divergence)
    soft = (temperature**2 * terms.sum(1)).masked_fill(bad, float("nan"))
    if not need_grad:
        return soft, x.new_empty(0, v)
    slope = pull - lq.exp() * pull.sum(1, keepdim=True)
    # exp(z_rest - lse_rest) is the student inside the rest: (q_t - p_t) cancels once, exactly.
    inside = (z_rest - lse_rest.masked_fill(lse_rest == -INF, 0)[:, None]).exp()
    wide = torch.cat([inside * slope[:, -1:], x.new_zeros(n, 1)], 1)  # column V takes the pads
    wide = wide.scatter(1, j, slope[:, :-1])
    return soft, (temperature * wide[:, :v]).masked_fill(bad[:, None], float("nan"))


def _divergence(lp: Tensor, lq: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Terms of D over the classes, and q dD/dq up to a multiple of q, both [N, K + 1]."""
    p, q = lp.exp(), lq.exp()
    if kind == "forward":
        return _times(p, lp - lq), -p
    if kind == "reverse":
        terms = _times(q, lq - lp)
        return terms, terms
    lm = torch.logaddexp(lp, lq) - math.log(2)
    pull = 0.5 * _times(q, lq - lm)
    return 0.5 * _times(p, lp - lm) + pull, pull


def _teacher(lp: Tensor, tail: Tensor | None, spec: Spec) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the support [N, K] and of the tail [N] under this mode."""
    none = lp.new_full((lp.shape[0],), -INF)
    rest = none if tail is None else tail.to(lp.dtype)
    if spec.tail == "truncate" and spec.temperature == 1:
        return lp, none
    log_total = torch.logaddexp(lp.logsumexp(1), rest)
    log_total = log_total.masked_fill(log_total == -INF, 0)  # no teacher at all: no soft loss
    return lp - log_total[:, None], rest - log_total if spec.tail == "bucket" else none


def _times(p: Tensor, log_ratio: Tensor) -> Tensor:
    """p * log_ratio, where 0 * log 0 = 0."""
    return (p * log_ratio).masked_fill(p == 0, 0)


def _hard(x: Tensor, labels: Tensor, ignore: int, need_grad: bool) -> tuple[Tensor, Tensor]:
    """Rows of the cross-entropy at temperature 1, and their gradient by the logits."""
    v = x.shape[1]
    ignored = labels == ignore
    bad = ~ignored & ((labels < 0) | (labels >= v))
    y = labels.masked_fill(ignored | bad, 0)[:, None]
    lse = x.logsumexp(1, keepdim=True)
    hard = (lse - x.gather(1, y))[:, 0].masked_fill(ignored, 0).masked_fill(bad, float("nan"))
    if not need_grad:
        return hard, x.new_empty(0, v)
    gradient = (x - lse).exp().scatter_add(1, y, x.new_full(y.shape, -1.0))
    return hard, gradient.masked_fill(ignored[:, None], 0).masked_fill(bad[:, None], float("nan"))


def check_ids(
    logits: Tensor, ids: Tensor, labels: Tensor | None, weight: Tensor, ignore_index: int
) -> None:
    """Raise ValueError for ids or labels out of range and for duplicates, in rows of weight != 0.

    Reads the result back, so a GPU synchronises.
    """
    v = logits.shape[1]
    live = weight != 0
    j, _, bad = _support(ids, v)
    if (row := _first(bad & live)) is not None:
        raise ValueError(
            f"ids must lie in [0, V) with V = {v}, or be -1 for a pad; row {row} holds "
            f"{ids[row].to(torch.int64).tolist()}: is the teacher's vocabulary the student's?"
        )
    ordered = j.sort(1).values
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] < v)).any(1)
    if (row := _first(twice & live)) is not None:
        raise ValueError(
            f"ids must not repeat within a row; row {row} holds "
            f"{ids[row].to(torch.int64).tolist()}: merge duplicates by adding their probabilities"
        )
    if labels is None:
        return
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= v))
    if (row := _first(outside & live)) is not None:
        raise ValueError(
            f"labels must lie in [0, V) with V = {v}, or be ignore_index={ignore_index}; "
            f"row {row} holds {int(labels[row])}"
        )


def _first(rows: Tensor) -> int | None:
    found = rows.nonzero()
    return int(found[0]) if len(found) else None
