"""What the teacher scores on the dev set: run over it, or read from the cache's soft labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from kdcache.evaluation.scoring import Predictions, score_teacher, scores
from kdcache.labels import known
from kdcache.manifest import Json
from kdcache.models.token_map import cached_tokenizer
from kdcache.plans import Docs, Plan
from kdcache.plans.batch import collate, length_batches
from kdcache.plans.same_texts import document_keys
from kdcache.progress import Progress
from kdcache.signals import LOGITS, SoftLabels
from kdcache.store import Cache
from kdcache.training.dev import DevSet, value_of

BUDGET = 4096  # tokens whose soft labels are decoded at once
OUTPUTS = 4096  # documents whose outputs are read at once
FROM_CACHE = "the cache's soft labels"


def teacher_score(
    dev: DevSet,
    cache: Cache,
    teacher: str | Path | None,
    *,
    batch_size: int,
    device: str,
    progress: Progress,
    trust_remote_code: bool = False,
) -> Json | None:
    """ "value" and "source" of the teacher's score by the metric of `dev`; None: it is unknown.

    A `teacher` that is named is run. Else the score is computed from the cache, where it has soft
    labels of every document. Where the label of a language model's row is not among the stored
    tokens, only the mass of all tokens left out is known: each is taken to have an even share of
    it, and "estimate" is true.
    """
    if teacher is not None:
        plan, docs = _as_teacher_reads(dev, cache)
        _, scored = score_teacher(
            teacher,
            plan,
            cached_tokenizer(cache.original),
            docs,
            batch_size=batch_size,
            device=device,
            progress=progress,
            trust_remote_code=trust_remote_code,
        )
        return {"value": value_of(scored, dev.metric), "source": f"run: {Path(teacher).name}"}
    rows = _rows(dev, cache)
    held = rows is not None and not cache.at_points and cache.holder(LOGITS) is not None
    score = _cached_score(dev, cache, rows or {}) if held else None
    if score is None:
        progress.say(
            "the teacher's score on the dev set is unknown, for the cache does not hold its soft "
            "labels there: --eval-teacher names a teacher to run"
        )
        return None
    if score.get("estimate"):
        progress.say(
            "the teacher's score on the dev set is an estimate, for the cache does not hold all "
            "of its outputs there: --eval-teacher runs it"
        )
    return score


def _as_teacher_reads(dev: DevSet, cache: Cache) -> tuple[Plan, Docs]:
    """The documents of the dev set in the teacher's tokens, where a student has others."""
    if dev.plan is cache.plan:
        return cache.original.plan, dev.docs
    if dev.told is None:
        return dev.plan, dev.docs
    numbers, plan = dev.plan.per_document["doc_id"][dev.docs], dev.told
    return plan, plan.docs[np.isin(plan.per_document["doc_id"][plan.docs], numbers)]


def _rows(dev: DevSet, cache: Cache) -> dict[int, int] | None:
    """The row of the cache that each document of the dev set is; None if one is not in it."""
    if dev.plan is cache.plan:
        return {doc: doc for doc in dev.docs.tolist()}
    held = {key: doc for doc, key in document_keys(cache.original.plan)}
    keys = _keys(dev)
    if not cache.complete or any(keys[doc] not in held for doc in dev.docs.tolist()):
        return None
    return {doc: held[keys[doc]] for doc in dev.docs.tolist()}


def _keys(dev: DevSet) -> dict[int, bytes]:
    """What tells each document of a dev file, by its row: what it is in the teacher's tokens."""
    if dev.told is None:
        return dict(document_keys(dev.plan))
    by_row = dev.told.per_document["doc_id"]
    told = {int(by_row[doc]): key for doc, key in document_keys(dev.told)}
    own = dev.plan.per_document["doc_id"]
    return {int(doc): told[int(own[doc])] for doc in dev.plan.docs}


def _held(rows: dict[int, int], docs: Docs) -> Docs:
    return np.asarray([rows[int(doc)] for doc in docs])


def _lacks_rows(dev: DevSet, cache: Cache, held: Docs) -> bool:
    """Whether the cache holds but some rows of documents."""
    counts = dev.plan.spans(dev.docs, dev.plan.task.rows)[1]
    return bool(len(cache.sampled_rows(cache.holder(LOGITS) or "", held)) < counts.sum())


def _cached_score(dev: DevSet, cache: Cache, rows: dict[int, int]) -> Json | None:
    """The score of the soft labels that the cache holds; None where they do not tell it."""
    if dev.metric in MEANS and dev.plan.label_kind.compare is None:
        return _mean_score(dev, cache, rows)
    held = _held(rows, dev.docs)
    own = bool(dev.plan.task.metric(dev.plan.config.classes or []))
    whole = None if _lacks_rows(dev, cache, held) else (_of_rows if own else _of_outputs)
    value = whole(dev, cache, held) if whole else None
    return None if value is None else {"value": value, "source": FROM_CACHE}


def _mean_score(dev: DevSet, cache: Cache, rows: dict[int, int]) -> Json:
    """A score that is a mean over rows, of those that the cache has."""
    found, exact = [], True
    for docs in length_batches(dev.plan, dev.docs, BUDGET):
        values, whole = MEANS[dev.metric](dev.plan, cache, docs, _held(rows, docs))
        found.append(values)
        exact = exact and whole
    score: Json = {"value": float(np.concatenate(found).mean()), "source": FROM_CACHE}
    return score if exact else score | {"estimate": True}


def _of_rows(dev: DevSet, cache: Cache, held: Docs) -> float:
    """The score that the task alone has, of the likeliest class of every row."""
    plan = dev.plan
    counts = plan.spans(dev.docs, plan.task.rows)[1]
    pieces = np.array_split(held, math.ceil(len(held) / OUTPUTS))
    likeliest = np.concatenate([_likeliest(cache, some) for some in pieces])
    told = plan.task.scores(likeliest, plan.labels(dev.docs), counts, plan.config.classes or [])
    return value_of(told, dev.metric)


def _likeliest(cache: Cache, held: Docs) -> np.ndarray:
    """The likeliest class of every row of documents, [rows]."""
    soft = cache.soft_labels(held)
    top: np.ndarray = soft.ids.gather(1, soft.logprobs.argmax(-1, keepdim=True)).squeeze(1).numpy()
    return top


def _of_outputs(dev: DevSet, cache: Cache, held: Docs) -> float | None:
    """The score of the teacher's own outputs; None where only the likeliest are there."""
    found = []
    for some in np.array_split(held, math.ceil(len(held) / OUTPUTS)):
        values = _outputs(cache.stored(some, LOGITS), cache.shape.outputs)
        if values is None:
            return None
        found.append(values.double().numpy())
    told = Predictions(dev.docs, np.concatenate(found), np.empty(0), np.empty(0, np.bool_))
    return value_of(scores(dev.plan, told), dev.metric)


def _outputs(stored: Any, outputs: int) -> torch.Tensor | None:
    """All outputs of the teacher, [N, C], or their log-probabilities; None: some are not there."""
    if stored.values is not None:
        return cast(torch.Tensor, stored.values)
    if stored.ids.shape[1] < outputs:
        return None
    return torch.empty_like(stored.logprobs).scatter_(1, stored.ids, stored.logprobs)


def _correct(plan: Plan, cache: Cache, docs: Docs, held: Docs) -> tuple[np.ndarray, bool]:
    """[rows], 1 where the likeliest class is the label, of each labelled row the cache has; whether
    it has all.
    """
    sampled = cache.sampled_rows(cache.holder(LOGITS) or "", held)
    labels = plan.labels(docs)
    rows = labels[sampled]
    there = known(rows)
    right = _likeliest(cache, held)[there] == rows[there]
    return right.astype(np.float64), len(sampled) == len(labels)


def _nats(plan: Plan, cache: Cache, docs: Docs, held: Docs) -> tuple[np.ndarray, bool]:
    """[rows], the cross-entropy of each labelled row the cache has; whether all are exact."""
    sampled = cache.sampled_rows(cache.holder(LOGITS) or "", held)
    labels = collate(plan, docs, {})["labels"]
    soft, rows = cache.soft_labels(held), labels[sampled]
    there = soft.ids == rows[:, None]
    nats = -soft.logprobs.masked_fill(~there, -torch.inf).logsumexp(-1)
    outside = ~there.any(-1)
    if outside.any():
        nats = torch.where(outside, _tail_nats(soft, cache.shape.outputs), nats)
    scored = rows >= 0
    exact = len(sampled) == len(labels) and not bool((outside & scored).any())
    return nats[scored].double().numpy(), exact


def _tail_nats(soft: SoftLabels, outputs: int) -> torch.Tensor:
    """[N], minus the log of an even share of the tail's mass."""
    assert soft.tail_logmass is not None
    return math.log(outputs - soft.ids.shape[1]) - soft.tail_logmass


MEANS = {"accuracy": _correct, "cross_entropy": _nats}
"""Scores that are means over rows, where teachers give probabilities: what the soft labels of some
documents come to, and whether they say all there is."""
