"""How far decoded soft labels are from the teacher: divergence, and the gradient they give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from kdcache.bench.fidelity_sample import Sample
from kdcache.signals import SoftLabels
from kdcache.signals.soft_labels import STAT_TEMPERATURE
from kdcache_kernels import topk_kl

TEMPERATURES = (1.0, 2.0, 4.0)
BLOCK = 256  # rows that are dense in the vocabulary at once


def blocks(rows: int) -> Iterator[slice]:
    """Slices of at most BLOCK rows."""
    return (slice(i, min(i + BLOCK, rows)) for i in range(0, rows, BLOCK))


def part(soft: SoftLabels, rows: slice) -> SoftLabels:
    """Some rows of decoded labels."""
    return SoftLabels(
        ids=soft.ids[rows],
        logprobs=soft.logprobs[rows],
        tail_logmass=None if soft.tail_logmass is None else soft.tail_logmass[rows],
        tail_stat=None if soft.tail_stat is None else soft.tail_stat[rows],
    )


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The teacher at one temperature: normaliser and sum of p log p of each row, [N] float64."""

    temperature: float
    normaliser: torch.Tensor
    negentropy: torch.Tensor


def truth(sample: Sample, temperature: float) -> Truth:
    """What every divergence at that temperature shares, in one pass over the logits."""
    found = []
    for rows in blocks(len(sample.logits)):
        scaled = sample.logits[rows].double() / temperature
        normaliser = scaled.logsumexp(-1)
        exact = scaled - normaliser[:, None]
        found.append((normaliser, (exact.exp() * exact).sum(-1)))
    normaliser, negentropy = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return Truth(temperature=temperature, normaliser=normaliser, negentropy=negentropy)


def divergences(sample: Sample, soft: SoftLabels, truths: Sequence[Truth]) -> dict[str, float]:
    """Mean and 99th percentile of KL(teacher || decoded) over the vocabulary, in nats, by T.

    What lies outside the ids is spread evenly. `code_kl` takes it as one outcome, at T=1: what the
    codes cost, whatever the ids leave out.
    """
    figures = {}
    for known in truths:
        pieces = [_kl(sample, part(soft, r), known, r) for r in blocks(len(sample.logits))]
        names = [f"kl_t{known.temperature:g}", "code_kl"][: 2 if known.temperature == 1 else 1]
        for name, values in zip(names, map(torch.cat, zip(*pieces, strict=True)), strict=False):
            figures[name] = float(values.mean())
            figures[f"{name}_p99"] = float(values.quantile(0.99))
    return figures


def _kl(
    sample: Sample, soft: SoftLabels, known: Truth, rows: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL over the vocabulary, and over the ids and the rest as one outcome, [rows] each.

    With the rest spread evenly, the divergence needs the teacher at the ids only.
    """
    t, spare = known.temperature, sample.logits.shape[1] - soft.ids.shape[1]
    exact = sample.logits[rows].gather(1, soft.ids).double() / t - known.normaliser[rows, None]
    logprobs = soft.logprobs.double() / t
    each = torch.full_like(logprobs[:, 0], -torch.inf)
    if spare and soft.tail_logmass is not None:
        each = (soft.tail_logmass.double() - math.log(spare)) / t
        if t == STAT_TEMPERATURE and soft.tail_stat is not None:
            each = soft.tail_stat.double() - math.log(spare)
    total = torch.logaddexp(logprobs.logsumexp(1), each + math.log(max(spare, 1)))
    decoded, each = logprobs - total[:, None], each - total
    p = exact.exp()
    rest = (1 - p.sum(1)).clamp(min=0) if spare else torch.zeros_like(total)
    outside = torch.where(rest > 0, rest * each, 0.0)
    over_all = known.negentropy[rows] - (p * decoded).sum(1) - outside
    inside = (p * (exact - decoded)).sum(1)
    tail = torch.where(rest > 0, rest * (rest.log() - each - math.log(max(spare, 1))), 0.0)
    return over_all, inside + tail


def full_gradient(sample: Sample, temperature: float) -> torch.Tensor:
    """Gradient of the mean KL by the student's linear map, from all of the teacher's logits."""
    return _of_logits(sample, sample.logits, temperature)


def _of_logits(sample: Sample, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    total = torch.zeros(sample.inputs.shape[1], sample.weight.shape[1], dtype=torch.float64)
    for rows in blocks(len(sample.logits)):
        teacher = (logits[rows] / temperature).softmax(-1)
        student = (sample.student[rows] / temperature).softmax(-1)
        total += _by_map(sample, rows, temperature * (student - teacher) / len(sample.logits))
    return total


def gradient(sample: Sample, soft: SoftLabels, temperature: float) -> torch.Tensor:
    """The same gradient from decoded labels: through the op that training uses, where ids are few.

    With all ids the op sorts them row by row, for the same sum as here.
    """
    if soft.ids.shape[1] == sample.logits.shape[1]:
        ordered = torch.empty_like(soft.logprobs).scatter_(1, soft.ids, soft.logprobs)
        return _of_logits(sample, ordered, temperature)
    total = torch.zeros(sample.inputs.shape[1], sample.weight.shape[1], dtype=torch.float64)
    for rows in blocks(len(sample.logits)):
        labels = part(soft, rows)
        logits = sample.student[rows].clone().requires_grad_()
        loss = topk_kl(
            logits,
            labels.ids,
            labels.logprobs,
            tail_logmass=labels.tail_logmass,
            tail_stat=labels.tail_stat if temperature == STAT_TEMPERATURE else None,
            temperature=temperature,
            weight=torch.full((len(labels.ids),), 1 / len(sample.logits)),
        )
        loss.backward()
        assert logits.grad is not None
        total += _by_map(sample, rows, logits.grad)
    return total


def _by_map(sample: Sample, rows: slice, by_logits: torch.Tensor) -> torch.Tensor:
    return (sample.inputs[rows].T @ (by_logits @ sample.weight)).double()


def compare(found: torch.Tensor, full: torch.Tensor) -> dict[str, float]:
    """Angle in degrees, ratio of norms and relative error of a gradient to the full one."""
    cosine = float((found * full).sum() / (found.norm() * full.norm()))
    return {
        "angle": math.degrees(math.acos(max(-1.0, min(1.0, cosine)))),
        "norm_ratio": float(found.norm() / full.norm()),
        "error": float((found - full).norm() / full.norm()),
    }
