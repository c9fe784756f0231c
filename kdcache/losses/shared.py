"""Soft labels in the outputs that teacher and student both have: see `CacheSpec.shared`."""

from __future__ import annotations

import torch

from kdcache.signals import SoftLabels
from kdcache.signals.soft_labels import STAT_TEMPERATURE


def within(soft: SoftLabels, outputs: int, temperature: float, tail: str) -> SoftLabels:
    """Labels of the first `outputs` classes; the mass of the others is in the tail, exactly.

    `tail_stat` is the tail at `temperature`. A row whose ids are all of those classes leaves the
    student nothing that could be its tail: as a bucket the teacher's is left out then, which
    renormalises the rest.
    """
    if soft.values is not None:  # the ids are all classes, in their order
        ids, logprobs, beyond = soft.ids, soft.logprobs, soft.logprobs[:, outputs:]
        ids, logprobs = ids[:, :outputs], logprobs[:, :outputs]
    else:
        ids, logprobs, beyond = _first_classes(soft, outputs)
    log_tail = _added(soft.tail_logmass, beyond.logsumexp(1))
    stored = soft.tail_stat if temperature == STAT_TEMPERATURE else None
    stat = _added(stored, (beyond / temperature).logsumexp(1))
    if tail == "bucket":
        whole = (ids >= 0).sum(1) == outputs
        log_tail, stat = (x.masked_fill(whole, -torch.inf) for x in (log_tail, stat))
    return SoftLabels(ids=ids, logprobs=logprobs, tail_logmass=log_tail, tail_stat=stat)


def _first_classes(
    soft: SoftLabels, outputs: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and log-probabilities without those beyond, whose log-probabilities come last.

    Pads take their places; columns that hold nothing else go where there are more than outputs.
    """
    outside = soft.ids >= outputs
    beyond = soft.logprobs.masked_fill(~outside, -torch.inf)
    ids = soft.ids.masked_fill(outside, -1)
    logprobs = soft.logprobs.masked_fill(outside, -torch.inf)
    if ids.shape[1] > outputs:
        first = (ids < 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :outputs]
        ids, logprobs = ids.gather(1, first), logprobs.gather(1, first)
    return ids, logprobs, beyond


def _added(log_one: torch.Tensor | None, log_other: torch.Tensor) -> torch.Tensor:
    return log_other if log_one is None else torch.logaddexp(log_one, log_other)
