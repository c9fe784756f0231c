"""How far a model agrees with the teacher of a cache, on documents that the cache holds too."""

from __future__ import annotations

import numpy as np
import torch

from kdcache.errors import ConfigError, ModelError
from kdcache.losses.shared import within
from kdcache.manifest import Json
from kdcache.plans import Docs, Plan
from kdcache.plans.same_texts import document_keys
from kdcache.signals import LOGITS, SoftLabels
from kdcache.store import Cache
from kdcache_kernels import topk_kl_rows


class Agreement:
    """Adds up, batch by batch, agreement and divergence of a model from the cached teacher.

    Raises ConfigError or ModelError, when made, if the plan's documents cannot be compared with
    the cache's; IncompleteError if parts of the cache are missing.
    """

    def __init__(self, plan: Plan, cache: Cache, outputs: int) -> None:
        _require_comparable(plan, cache, outputs)
        self.plan, self.cache = plan, cache
        held = {key: doc for doc, key in document_keys(cache.plan)}
        self.rows = {doc: held[key] for doc, key in document_keys(plan) if key in held}
        self.kind = plan.label_kind
        self._count, self._same, self._apart, self._asked = 0, 0.0, 0.0, True

    def add(self, docs: Docs, logits: torch.Tensor) -> None:
        """Take in the model's logits, [rows of `docs`, outputs], of one batch."""
        shared = np.array([int(doc) in self.rows for doc in docs])
        name = self.cache.holder(LOGITS)
        if name is None or not shared.any():
            return
        counts = self.plan.spans(docs, self.plan.task.rows)[1]
        held = np.array([self.rows[int(doc)] for doc in docs[shared]])
        rows = np.flatnonzero(np.repeat(shared, counts))[self.cache.sampled_rows(name, held)]
        mine, theirs = logits[torch.from_numpy(rows)].cpu(), self.cache.stored(held, LOGITS)
        mine = mine[:, : self.cache.shape.outputs]
        if not len(mine):
            return
        self._count += len(mine)
        if self.kind.compare is not None:
            assert theirs.values is not None
            same, apart = self.kind.compare(mine, theirs.values)
            self._same += 0.0 if same is None else float(same.sum())
            self._apart += float(apart.sum())
            self._asked = same is not None
        else:
            self._same += float((mine.argmax(-1) == _likeliest(theirs)).sum())
            if mine.shape[1] < self.cache.shape.outputs:
                theirs = within(theirs, mine.shape[1], 1.0, "bucket")
            self._apart += float(_divergence(mine, theirs).double().sum())

    def report(self) -> Json:
        """Documents shared, share of rows with the same likeliest class or token (of documents of
        several classes, with all the same), and the mean of KL(teacher || model) in nats (of the
        squared difference, for values).

        None where the cache has no such row.
        """
        asked = self._count and self._asked
        return {
            "documents": len(self.rows),
            "agreement": self._same / self._count if asked else None,
            "divergence": self._apart / self._count if self._count else None,
        }


def _require_comparable(plan: Plan, cache: Cache, outputs: int) -> None:
    task, theirs = plan.task, cache.plan.config
    if theirs.task != task.name:
        raise ConfigError(f"the model is for {task}; the cache {cache.path} is for {theirs.task}")
    if theirs.label_kind != plan.config.label_kind:
        raise ModelError(
            f"the model is a {plan.label_kind.called} and the cache's teacher a "
            f"{cache.plan.label_kind.called}: they cannot be compared; leave --cache out"
        )
    ours, known = plan.config.classes or [], theirs.classes or []
    if ours != known and sorted(ours) == sorted(known):
        raise ModelError(
            f"the model numbers its classes {', '.join(ours[:4])}, ... and the cache's teacher "
            f"{', '.join(known[:4])}, ...: they cannot be compared; leave --cache out"
        )
    if task.labelled and cache.shape.outputs != outputs:
        raise ModelError(
            f"the model has {outputs} outputs and the cache's teacher {cache.shape.outputs}: they "
            "cannot be compared; leave --cache out"
        )
    cache.require_complete()


def _likeliest(soft: SoftLabels) -> torch.Tensor:
    return soft.ids.gather(1, soft.logprobs.argmax(-1, keepdim=True)).squeeze(1)


def _divergence(logits: torch.Tensor, soft: SoftLabels) -> torch.Tensor:
    """KL(teacher || model) of each row, in nats; what the cache left out is one outcome."""
    rows = topk_kl_rows(logits, soft.ids, soft.logprobs, tail_logmass=soft.tail_logmass)
    return rows[1]
