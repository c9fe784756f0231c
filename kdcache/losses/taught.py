"""What a loss of several teachers comes to."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from kdcache.labels import known_rows
from kdcache.losses.base import Step, exact
from kdcache.losses.bound import Bound, BoundLoss
from kdcache.losses.pairs import Pairs
from kdcache.losses.teachers import CHOOSERS, Asked
from kdcache.plans.batch import Batch, Rows
from kdcache.signals import HeadLabels, SoftLabels
from kdcache.tasks import IGNORE_INDEX


def value_of(one: BoundLoss, pairs: Pairs, step: Step, seed: int, number: int) -> torch.Tensor:
    """What a loss of several teachers comes to: theirs, each times its share.

    `number` counts the steps of the run before this one.
    """
    asked = Asked(
        teachers=tuple(one.taught),
        probability=one.probability or (1 / len(one.taught),) * len(one.taught),
        batch=step.batch,
        seed=seed,
        step=number,
        cross_entropy=lambda name: nats_on_labels(one.soft[name], pairs),
    )
    found = []
    for name, share in CHOOSERS[one.choose].shares(asked).items():
        matches = one.taught[name]
        matched = [pairs.of(match) for match in matches]
        own = replace(step, teacher=matches[0].source.shape)
        if isinstance(share, torch.Tensor):
            found.append(one.loss.value(matched, replace(own, share=share)))
        else:
            found.append(share * one.loss.value(matched, own))
    return torch.stack(found).sum()


def nats_on_labels(soft: Bound, pairs: Pairs) -> torch.Tensor:
    """Cross-entropy of a teacher on each document's labels, [B], the mean over its rows.

    A document without a label has that of a teacher that knows nothing, whose logits are all zero.
    """
    found, batch, kind = pairs.teacher_of(soft), pairs.batch, soft.source.labels
    known = found.dense() if isinstance(found, HeadLabels) else found
    outputs, labels = soft.source.shape.outputs, labels_at(batch, soft.rows)
    if kind.divergence is None:
        nats, nothing = label_nats(known, labels, outputs), math.log(outputs)
    else:  # probabilities of each class by itself
        assert known.values is not None
        nats, nothing = kind.hard_rows(exact(known.values), labels), outputs * math.log(2)
        nats = nats.masked_fill(~known_rows(labels), torch.inf)
    there = nats.isfinite()
    return of_documents(batch, soft.rows, nats.masked_fill(~there, 0.0), there, nothing)


def of_documents(
    batch: Batch, rows: Rows, values: torch.Tensor, there: torch.Tensor | None, nothing: float
) -> torch.Tensor:
    """Of values of rows, [N], the mean over those of each document that are `there`, [B]; `nothing`
    of a document that has none, None: all rows are there.
    """
    documents = len(batch["docs"])
    owner = batch.of_rows(torch.arange(documents, device=values.device), rows)
    counted = torch.ones_like(values) if there is None else there.to(values.dtype)
    counts = values.new_zeros(documents).index_add(0, owner, counted)
    sums = values.new_zeros(documents).index_add(0, owner, values * counted)
    return torch.where(counts > 0, sums / counts.clamp(min=1), nothing)


def labels_at(batch: Batch, rows: Rows) -> torch.Tensor:
    """The labels of rows of the logits, all or those that a signal has a fraction of."""
    return batch["labels"][batch[rows.sampled_rows]] if rows.sampled_rows else batch["labels"]


def label_nats(soft: SoftLabels, labels: torch.Tensor, outputs: int) -> torch.Tensor:
    """Cross-entropy of soft labels on hard ones, [N] in nats; infinite for a row without a label.

    A label outside the stored ids has an even share of the mass that is outside: an estimate.
    """
    logprobs = exact(soft.logprobs)
    held = soft.ids == labels[:, None]
    nats = -logprobs.masked_fill(~held, -torch.inf).logsumexp(-1)
    if soft.tail_logmass is not None:
        outside = (outputs - (soft.ids >= 0).sum(1)).clamp(min=1).log() - exact(soft.tail_logmass)
        nats = torch.where(held.any(-1), nats, outside)
    return nats.masked_fill(labels == IGNORE_INDEX, torch.inf)
