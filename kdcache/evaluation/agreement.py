"""How far a model agrees with the teacher of a cache, on documents that the cache holds too."""

from __future__ import annotations

import numpy as np
import torch

from kdcache.errors import ConfigError, ModelError
from kdcache.evaluation.beside import divergence, likeliest
from kdcache.labels import Outputs
from kdcache.losses.shared import within
from kdcache.manifest import Json
from kdcache.plans import Docs, Plan
from kdcache.plans.same_texts import document_keys
from kdcache.signals import LOGITS
from kdcache.store import Cache
from kdcache.tasks import Task


class Agreement:
    """Adds up, batch by batch, agreement and divergence of a model from the cached teacher.

    Raises ConfigError or ModelError, when made, if the plan's documents cannot be compared with
    the cache's; IncompleteError if parts of the cache are missing.
    """

    def __init__(self, plan: Plan, cache: Cache, outputs: int) -> None:
        require_comparable(plan.task, Outputs(plan.config.classes, outputs, plan.label_kind), cache)
        self.plan, self.cache, self.rows = plan, cache, held_in(cache, plan)
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
            self._same += float((mine.argmax(-1) == likeliest(theirs)).sum())
            if mine.shape[1] < self.cache.shape.outputs:
                theirs = within(theirs, mine.shape[1], 1.0, "bucket")
            self._apart += float(divergence(mine, theirs).double().sum())

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


def held_in(cache: Cache, plan: Plan) -> dict[int, int]:
    """Documents of a plan that a cache has too: row in the plan -> row in the cache."""
    held = {key: doc for doc, key in document_keys(cache.plan)}
    return {doc: held[key] for doc, key in document_keys(plan) if key in held}


def require_comparable(task: Task, model: Outputs, cache: Cache) -> None:
    """Raise unless a model of a task, with such outputs, says what the teacher of a cache says.

    ConfigError or ModelError if it does not, IncompleteError if parts of the cache are missing.
    """
    theirs, kind = cache.plan.config, model.kind
    if cache.at_points:
        raise ConfigError(
            f"the cache {cache.path} holds what its teacher says at points, and a model is scored "
            "on texts as they are: name the cache that the points were found from"
        )
    if theirs.task != task.name:
        raise ConfigError(f"the model is for {task}; the cache {cache.path} is for {theirs.task}")
    if kind is None or kind.name != theirs.label_kind:
        raise ModelError(
            f"the model is a {kind.called if kind else 'model of no known labels'} and the cache's "
            f"teacher a {cache.plan.label_kind.called}: they cannot be compared; leave --cache out"
        )
    ours, known = model.names or [], theirs.classes or []
    if ours != known and sorted(ours) == sorted(known):
        raise ModelError(
            f"the model numbers its classes {', '.join(ours[:4])}, ... and the cache's teacher "
            f"{', '.join(known[:4])}, ...: they cannot be compared; leave --cache out"
        )
    if task.labelled and cache.shape.outputs != model.count:
        raise ModelError(
            f"the model has {model.count} outputs and the cache's teacher {cache.shape.outputs}: "
            "they cannot be compared; leave --cache out"
        )
    cache.require_complete()
