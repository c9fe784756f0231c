"""The points at which the documents of a cache are read, of a second round of caching."""

from __future__ import annotations

from typing import Any

from kdcache.errors import ConfigError
from kdcache.losses import CacheSpec
from kdcache.models.points import POINTS
from kdcache.plans.batch import Batch
from kdcache.signals import EMBEDDINGS, ModelSizes, Signal, of_signal

WRAPPED = ("gradient_checkpointing", "fsdp", "deepspeed", "torch_compile")
"""Fields of TrainingArguments that put something around the first block. transformers before 5.23
runs a block that is checkpointed again with its hooks, when the points are no longer there."""


def require_read_alike(cache: CacheSpec) -> None:
    """Raise ConfigError for teachers of one cache that were run at points, and others that were not
    or at others: a student reads a document once, and would be held against both.
    """
    named = [name for name, one in cache.teachers.items() if one.points]
    if named and cache.others:
        raise ConfigError(
            f"{named[0]} was run at points found for a student, and the cache has "
            f"{len(cache.others)} more of its teachers: a student cannot read a document in two "
            "places at once; train on the caches that were merged, side by side, in their place"
        )


def require_blocks(args: Any) -> None:
    """Raise ConfigError for a run whose first block may not read the points that it is handed."""
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
        self.signal = next(held)
        specs = self._held.arrays(cache.task, cache.shape)
        self.arrays = [f"{self.signal}/{spec.name}" for spec in specs]

    @property
    def _held(self) -> Signal:
        return self.cache.signals[self.signal]

    def put(self, batch: Batch) -> Batch:
        """The batch with the points of its tokens."""
        rows = self._held.decode(
            of_signal(batch, self.signal), EMBEDDINGS, self.cache.shape
        ).dense()
        return batch.beside(**{POINTS: batch.at_tokens(rows)})
