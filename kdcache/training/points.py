"""The points at which the documents of a cache are read, of a second round of caching."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kdcache.errors import ConfigError
from kdcache.losses import CacheSpec
from kdcache.losses.bound import BoundLoss
from kdcache.models import run
from kdcache.models.points import POINTS
from kdcache.models.recording import inside
from kdcache.plans.batch import Batch
from kdcache.signals import EMBEDDINGS, Activations, ModelSizes, Signal, of_signal

WRAPPED = ("gradient_checkpointing", "fsdp", "deepspeed", "torch_compile")
"""Fields of TrainingArguments that put something around the first block. transformers before 5.23
runs a block that is checkpointed again with its hooks, when the points are no longer there."""
NEW = {"config": "a configuration (student.config)", "built": "name (student.built)"}
"""Ways to a student whose embeddings are drawn anew."""


def require_blocks(args: Any, spec: Any) -> None:
    """Raise ConfigError for a run whose first block may not read the points that it is handed, or
    for a student whose embeddings are not of the teacher's space.
    """
    made = next((name for name in NEW if getattr(spec, name, None)), None)
    if made is not None:
        raise ConfigError(
            "the cache holds points of its teacher's embeddings, and a student by "
            f"{NEW[made]} has embeddings of a space of its own: make it of the teacher's layers "
            "(--init-from-teacher), or go on with one that was (--student)"
        )
    for name in WRAPPED:
        if getattr(args, name):
            raise ConfigError(
                "the cache holds points that the first block reads in the place of the embedding "
                f"output, which does not go with training.{name}: leave one of the two out"
            )


class BoundPoints:
    """Where a cache's documents lie in the place of their embedding outputs (`kdcache.ascend`).

    Attributes:
        arrays: what has to be read of the cache for it.

    Raises ConfigError for a student of another width, or with tokens of its own.
    """

    def __init__(self, cache: CacheSpec, student: ModelSizes) -> None:
        self.cache = cache
        if cache.reworded:
            raise ConfigError(
                "the cache holds points of its teacher's tokens, and the student cuts texts into "
                "others: take a student with the teacher's tokenizer, or leave the cache out"
            )
        if student.peers or student.hidden != cache.shape.hidden:
            one = f"{student.peers + 1} students" if student.peers else "the student"
            raise ConfigError(
                f"the cache holds points of width {cache.shape.hidden}, which one student of that "
                f"width reads in the place of its embedding output; got {one} of {student.hidden}"
            )
        held = (name for name, one in cache.signals.items() if EMBEDDINGS in one.gives())
        self.name = next(held)
        self.signal = cache.prefix + self.name
        specs = self._held.arrays(cache.task, cache.shape)
        self.arrays = [f"{self.signal}/{spec.name}" for spec in specs]

    @property
    def _held(self) -> Signal:
        return self.cache.signals[self.name]

    def put(self, batch: Batch) -> Batch:
        """The batch with the points of its tokens."""
        rows = self._held.decode(
            of_signal(batch, self.signal), EMBEDDINGS, self.cache.shape
        ).dense()
        return batch.beside(**{POINTS: batch.at_tokens(rows)})


class Elsewhere:
    """Losses for which a student reads documents once more, at the points of another teacher.

    Attributes:
        points: where.
        reads: what the losses read of the student there.
    """

    def __init__(self, teacher: CacheSpec, student: ModelSizes, losses: Iterable[BoundLoss]):
        self.points = BoundPoints(teacher, student)
        reads = (match.student for one in losses for match in one.matches)
        self.reads = list(dict.fromkeys(reads))

    def beside(self, seen: Activations, model: Any, batch: Batch) -> Activations:
        """What a student computed for a batch, with what it computes at the points.

        That is run on the model inside what ranks put around one, whose hooks are on parameters.
        """
        task = self.points.cache.task
        there = run(inside(model), self.points.put(batch), self.reads, task=task)
        return replace(seen, moved=there)


def elsewhere(
    cache: CacheSpec, student: ModelSizes, losses: Iterable[BoundLoss]
) -> Elsewhere | None:
    """What losses read at the points of a teacher; ConfigError for the points of several."""
    moved = [one for one in losses if one.at]
    places = list(dict.fromkeys(one.at for one in moved))
    if len(places) > 1:
        raise ConfigError(
            f"losses learn at the points of {' and '.join(places)}; a student reads documents at "
            "those of one besides the texts: name one of them (losses.NAME.teachers)"
        )
    return Elsewhere(cache.teachers[places[0]], student, moved) if moved else None
