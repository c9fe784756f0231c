"""A loss whose matches a cache and a student can serve: what binding finds, and training reads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from kdcache.losses.base import Loss
from kdcache.losses.cache_spec import CacheSpec
from kdcache.plans.batch import Rows
from kdcache.signals import Signal, Tap
from kdcache.tasks import RowSpace


class Bound(NamedTuple):
    """A match of which the cache holds the teacher's side.

    Attributes:
        student: what is read out of the student.
        teacher: what of the signal.
        signal: its name in a batch; "" for labels.
        source: the cache as the teacher that it is of.
        outputs: how many outputs student and teacher share; None: all of them.
        space: the rows that are stored.
        stored: their positions, of tokens.
        positions: those that are compared: all of the stored ones, or some picked out of them.
        rows: what the compared rows are in a batch.
        arrays: what has to be read of the cache.
        project: name of the learned map among those of all losses; "": none.
    """

    student: Tap
    teacher: Tap
    signal: str
    source: CacheSpec
    outputs: int | None
    space: RowSpace
    stored: str
    positions: str
    rows: Rows
    arrays: tuple[str, ...] = ()
    project: str = ""

    @property
    def held(self) -> Signal:
        """The signal."""
        return self.source.signals[self.signal.removeprefix(self.source.prefix)]


class BoundLoss(NamedTuple):
    """A loss with all its matches.

    Attributes:
        taught: its matches by teacher.
        rows: those that its weights are of.
        choose: the policy by which teachers count; "": there is but one, which counts whole.
        probability: of each teacher.
        soft: where the policy asks for labels, each teacher's own soft labels.
        at: the teacher at whose points the student reads the documents for it; "": where it reads
            them anyway.
    """

    name: str
    loss: Loss
    taught: Mapping[str, tuple[Bound, ...]]
    rows: Rows
    choose: str = ""
    probability: tuple[float, ...] = ()
    soft: Mapping[str, Bound] = MappingProxyType({})
    at: str = ""

    @property
    def matches(self) -> tuple[Bound, ...]:
        """Its matches with all teachers."""
        return tuple(match for matches in self.taught.values() for match in matches)
