"""The documents of several caches as one data set: each step is of one cache.

A step is of one cache because its rows are decoded as that cache stored them, by its own codec and
from its own teacher, and read as fast as those of a cache alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from kdcache.errors import ConfigError
from kdcache.plans import Array, Docs
from kdcache.plans.batch import Batch
from kdcache.training.documents import CachedDocuments, document_order
from kdcache.training.loader import RankBatches

PASSES, STEPS = 2, 3  # set their draws apart from those of one cache


class Epoch(NamedTuple):
    """The steps of an epoch, of documents numbered over all caches.

    Attributes:
        full: [S, batch], in the order they are taken.
        rest: what does not fill a step, of each cache that leaves some; taken last.
    """

    full: Docs
    rest: tuple[Docs, ...]


MIXES: Mapping[str, Callable[[float], float]] = {
    "even": lambda gone: 0.0,
    "sqrt": lambda gone: 0.5,
    "proportional": lambda gone: 1.0,
    "annealed": lambda gone: 1 - 0.8 * gone,
}
"""Mixes by name: the power of the number of a cache's documents that its share goes by.

`gone` is 0 in the first epoch and 1 in the last. Source: Stickland and Murray 2019, BERT and PALs,
arXiv:1902.02671, section 4.
"""


def shares_of(mix: Sequence[float] | str, documents: Sequence[int], gone: float) -> list[float]:
    """The shares of the steps of an epoch, which sum to 1; caches have so many `documents`."""
    if not isinstance(mix, str):
        return list(mix)
    powers = np.asarray(documents, np.float64) ** MIXES[mix](gone)
    return [float(share) for share in powers / powers.sum()]


def steps_of(counts: Sequence[int], mix: Sequence[float], batch: int) -> list[int]:
    """Steps of an epoch that each cache gets: shares `mix`, which sum to 1, of as many steps as
    the documents of all caches fill, rounded by largest remainder.
    """
    steps = -(-sum(counts) // batch)
    quotas = np.asarray(mix, np.float64) * steps
    given = np.floor(quotas).astype(np.int64)
    order = np.argsort(-(quotas - given), kind="stable")
    given[order[: steps - int(given.sum())]] += 1
    return [int(n) for n in given]


def pass_documents(count: int, *, start: int, stop: int, seed: int, cache: int) -> Docs:
    """Documents `start` to `stop` of a cache's passes, one behind the other, each in an order of
    its own: numbers below `count`.
    """
    first, last = start // count, max(start, stop - 1) // count
    orders = [
        np.random.default_rng((seed, turn, PASSES, cache)).permutation(count)
        for turn in range(first, last + 1)
    ]
    return np.concatenate(orders)[start - first * count : stop - first * count]


class MixedDocuments(Dataset[Batch]):
    """Documents of several caches, in an order that is a function of (seed, epoch, batch) alone.

    Without `mix` an epoch is one pass over the documents of every cache. With it, an epoch has as
    many steps as all documents fill, of which each cache has its share; a cache goes on in the next
    epoch where it stopped, and starts over, in another order, when it has been gone through.

    Documents are numbered over all caches: those of the second behind the rows of the first.

    Args:
        sets: the documents of each cache, with the arrays to read of it.
        mix: shares of the steps, which sum to 1, or a name of MIXES; None: as many documents as
            there are.
        seed: fixes the order, together with the epoch.
        window: batches among which documents of a cache are sorted by length; 0: they are not.

    Attributes:
        batch: documents of a step over all ranks.
        epochs: how many there are, for a mix that changes.
        ahead: as of `CachedDocuments`.
    """

    ahead = True

    def __init__(
        self,
        sets: Sequence[CachedDocuments],
        mix: Sequence[float] | str | None,
        *,
        seed: int,
        window: int = 0,
    ) -> None:
        self.sets, self.mix, self.seed, self.window = list(sets), mix, seed, window
        self.epoch, self.batch, self.epochs = 0, 1, 1
        self.batches = StepBatches
        sizes = [len(one.cache.plan.per_document["doc_len"]) for one in sets]
        self.starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def counts(self) -> list[int]:
        """Documents of the epoch of each cache.

        Raises ConfigError where a share comes to no step.
        """
        return self._counts(self.epoch)

    def _counts(self, epoch: int) -> list[int]:
        there = [len(one.docs) for one in self.sets]
        if self.mix is None:
            return there
        shares = shares_of(self.mix, there, min(1.0, epoch / max(1, self.epochs - 1)))
        steps = steps_of(there, shares, self.batch)
        for one, share, given in zip(self.sets, shares, steps, strict=True):
            if not given:
                raise ConfigError(
                    f"an epoch has {sum(steps):,} steps of {self.batch:,} documents, and the share "
                    f"of {one.cache.path}, {share:.3g} (--mix), comes to none of them: give it a "
                    "larger share, or take smaller steps (--batch-size)"
                )
        return [given * self.batch for given in steps]

    @property
    def mean_counts(self) -> list[int]:
        """Documents of each cache, the mean over all epochs."""
        epochs = [self._counts(epoch) for epoch in range(self.epochs)]
        return [round(sum(counts) / self.epochs) for counts in zip(*epochs, strict=True)]

    @property
    def shares(self) -> list[float]:
        """What part of the epoch's documents is of each cache."""
        counts = self.counts
        return [count / sum(counts) for count in counts]

    def steps(self) -> Epoch:
        """The steps of the epoch."""
        before = [self._counts(epoch) for epoch in range(self.epoch)]
        parts = [
            self._documents(k, count, start=sum(counts[k] for counts in before))
            for k, count in enumerate(self.counts)
        ]
        cuts = [len(docs) // self.batch * self.batch for docs in parts]
        full = np.concatenate(
            [docs[:cut].reshape(-1, self.batch) for docs, cut in zip(parts, cuts, strict=True)]
        )
        turn = np.random.default_rng((self.seed, self.epoch, STEPS)).permutation(len(full))
        rest = (docs[cut:] for docs, cut in zip(parts, cuts, strict=True))
        return Epoch(full[turn], tuple(docs for docs in rest if len(docs)))

    def _documents(self, cache: int, count: int, *, start: int) -> Docs:
        """The documents of the epoch that are of one cache, cut into steps as they lie.

        `start` are those that earlier epochs have taken of it.
        """
        one = self.sets[cache]
        chosen = one.docs[
            pass_documents(
                len(one.docs), start=start, stop=start + count, seed=self.seed, cache=cache
            )
        ]
        if self.window:
            lengths: Array = one.cache.plan.per_document["doc_len"][chosen]
            order = {"seed": self.seed, "epoch": self.epoch, "batch": self.batch}
            chosen = chosen[document_order(count, lengths=lengths, window=self.window, **order)]
        numbered: Docs = self.starts[cache] + chosen
        return numbered

    @property
    def order(self) -> Docs:
        """Documents of the epoch, numbered over all caches, in the order they are taken."""
        steps = self.steps()
        return np.concatenate([steps.full.reshape(-1), *steps.rest])

    def turn(self, docs: Sequence[int]) -> Batch:
        """The batch of documents of one cache; of one below 0, ~document stands in and is idle."""
        rows = np.asarray(docs, np.int64)
        idle = bool(rows[0] < 0)
        rows = ~rows if idle else rows
        cache = int(np.searchsorted(self.starts, rows[0], "right")) - 1
        batch = self.sets[cache].read(rows - self.starts[cache])
        batch.cache, batch.idle, batch.weighed = cache, idle, self.sets[cache].weighed
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch


class StepBatches(RankBatches):
    """The batches of one rank where steps are of one cache each: its share of every step, in turn.

    All steps, those that are not full among them, have as many turns on all ranks: where one has
    no document left, a document of the step stands in, and is idle.
    """

    @property
    def _turns(self) -> int:
        return self.step // (self.batch_size * self.ranks)

    def __len__(self) -> int:
        counts, batch = self._mixed.counts, self._mixed.batch
        steps = sum(count // batch + (not self.drop_last and count % batch > 0) for count in counts)
        return steps * self._turns

    @property
    def _mixed(self) -> MixedDocuments:
        dataset = self.sampler.dataset
        assert isinstance(dataset, MixedDocuments)
        return dataset

    def __iter__(self) -> Iterator[list[int]]:
        steps = self._mixed.steps()
        for docs in (*steps.full, *(() if self.drop_last else steps.rest)):
            yield from self._share(docs)

    def _share(self, docs: Docs) -> Iterator[list[int]]:
        cuts = [len(docs) * rank // self.ranks for rank in range(self.ranks + 1)]
        low, high = list(pairwise(cuts))[self.rank]
        for turn in range(self._turns):
            begin = low + turn * self.batch_size
            yield docs[begin : min(high, begin + self.batch_size)].tolist() or [~int(docs[0])]
