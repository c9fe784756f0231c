"""The documents of a cache as a torch data set, in an order fixed by (seed, epoch).

The order is a function of the seed, the epoch and the global batch size. Batches are cut from it
and then dealt out to ranks, so any number of ranks trains on the same batches, and a run that
skips the batches it has seen continues as if it had not stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from kdcache.errors import ConfigError, one_of
from kdcache.plans import Array, Docs
from kdcache.plans.batch import Batch, epoch_order
from kdcache.store import Cache, Place, open_cache
from kdcache.store.stored_rows import require_documents


def document_order(
    count: int,
    *,
    seed: int,
    epoch: int,
    batch: int = 1,
    lengths: Array | None = None,
    window: int = 0,
) -> Docs:
    """The order of an epoch, to be cut into batches of `batch` documents.

    With `lengths` and a `window`, documents are sorted by length among every `window` batches, and
    whole batches are shuffled; a last batch that is not full stays last.
    """
    grouped = None if window < 1 else lengths
    order = epoch_order(count, seed=seed, epoch=epoch, lengths=grouped, window=window * batch)
    if grouped is None:
        return order
    full = count // batch * batch
    batches = order[:full].reshape(-1, batch)
    turn = np.random.default_rng((seed, epoch, 1)).permutation(len(batches))
    return np.concatenate([batches[turn].reshape(-1), order[full:]])


def rank_share(
    order: Docs,
    *,
    batch: int,
    rank: int = 0,
    ranks: int = 1,
    skip: int = 0,
    drop_last: bool = False,
) -> Docs:
    """What one of `ranks` reads of an order: its part of every batch of `batch` documents.

    The first `skip` batches are left out. A last batch that is not full is left out with
    `drop_last`, and else shared as evenly as it goes; no document is read twice.

    Raises ConfigError unless every rank's part of a batch is as large, and there is such a rank.
    """
    if ranks < 1 or batch < 1 or batch % ranks or not 0 <= rank < ranks or skip < 0:
        raise ConfigError(
            "a batch is shared among ranks numbered from 0, and skip counts batches: expected "
            f"batch to be a multiple of ranks; got batch={batch}, rank={rank}, ranks={ranks}, "
            f"skip={skip}"
        )
    full = len(order) // batch * batch
    whole = order[:full].reshape(-1, ranks, batch // ranks)[skip:, rank].reshape(-1)
    rest = order[full:]
    if drop_last or skip > full // batch:
        return whole
    return np.concatenate(
        [whole, rest[len(rest) * rank // ranks : len(rest) * (rank + 1) // ranks]]
    )


class CachedDocuments(Dataset[Batch]):
    """The documents of a cache as a torch data set: what students learn from, without a teacher.

    Item `i` is the document at place `i` of the epoch's order, as a Batch of one; places run from
    0 to `len() - 1`, negative ones from the end. A DataLoader asks for a batch of places at once
    and gets the Batch read and padded, so its `collate_fn` is `collate`. Read in order, batches of
    `batch / ranks` documents are this rank's part of every step, those that `kdcache.train` uses
    for the same seed; any other order, such as a shuffling sampler's, reads the same documents. A
    Trainer or Accelerate, which share a data set among ranks themselves, take one without `rank`.

    It can be pickled: workers that are spawned, and forked ones, open the cache for themselves.
    Those that a DataLoader keeps (`persistent_workers`) do not see `set_epoch`.

    Args:
        cache: a cache, or the folder or URL of one.
        arrays: signal arrays to read, by default all; no others are touched.
        seed: fixes the order, together with the epoch.
        epoch: epoch whose order places count in.
        batch: documents of one training step over all ranks.
        window: batches among which documents are sorted by length; 0: they are not.
        docs: rows of the plan's document space that are read; by default all documents.
        rank, ranks: which part of every batch this process reads, of how many.
        skip: batches at the start of `epoch` that are left out: those a resumed run has seen.
        drop_last: leave out the documents that do not fill a batch. Else they are shared among
            ranks, and where they are fewer than ranks, some have a step less.

    Raises:
        CacheError, IncompleteError: the cache cannot be opened, or lacks parts and `docs` does not
            say which documents to read.
        ConfigError: an array it does not hold; rows without a document; ranks that do not divide a
            batch.

    Attributes:
        ahead: whether kdcache's own loader reads the next batch in a thread while one is used.
        weighed: whether whoever trains weighs the documents of its turns, see `Batch.weighed`.
    """

    ahead = True
    weighed = False
    batches: Any = None  # what cuts its epochs into turns; kdcache's loader knows what does

    def __init__(
        self,
        cache: Place | Cache,
        arrays: Sequence[str] | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        batch: int = 1,
        window: int = 0,
        docs: Docs | None = None,
        rank: int = 0,
        ranks: int = 1,
        skip: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.cache = cache if isinstance(cache, Cache) else open_cache(cache)
        if docs is None:
            self.cache.require_complete()
        self.docs = self.cache.plan.docs if docs is None else np.asarray(docs, np.int64)
        require_documents(self.cache.plan, self.docs)  # an IndexError later would end iterations
        self.arrays = list(self.cache.layouts if arrays is None else arrays)
        for name in self.arrays:
            one_of("array of this cache", name, self.cache.readable)
        if min(seed, epoch) < 0:
            raise ConfigError(f"seed and epoch are 0 or more; got seed={seed}, epoch={epoch}")
        self.seed, self.batch, self.window = seed, batch, window
        self.rank, self.ranks, self.drop_last = rank, ranks, drop_last
        self.epoch, self.skip = epoch, skip
        self._made: tuple[tuple[int, ...], Docs] | None = None
        self._share(np.empty(0, np.int64))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}  # drawn anew sooner than it would be sent

    def __len__(self) -> int:
        return len(self._share(self.docs))

    def __getitem__(self, place: int) -> Batch:
        return self.__getitems__([place])

    def __getitems__(self, places: Sequence[int]) -> Batch:
        order = self._order
        chosen = [index(place) for place in places]
        for place in chosen:
            if not -len(order) <= place < len(order):
                raise IndexError(f"place {place} of {len(order)} documents")
        return self.read(order[chosen])

    def read(self, docs: Sequence[int] | Docs) -> Batch:
        """The batch of documents named by their rows in the plan's document space."""
        return self.cache.batch(np.asarray(docs, np.int64), self.arrays)

    def turn(self, docs: Sequence[int]) -> Batch:
        """The batch of a rank's turn; of one without documents, one stands in and is idle."""
        batch = self.read(docs or self.docs[:1])
        batch.idle, batch.weighed = not docs, self.weighed
        return batch

    def collate(self, batch: Batch | Sequence[Batch]) -> Batch:
        """The `collate_fn` of a DataLoader: a Batch as it is, single documents as one Batch.

        A loader that goes through another data set (a ConcatDataset, say) has single documents.

        Raises:
            ConfigError: what is given is neither a Batch nor documents of this data set.
        """
        if isinstance(batch, Batch):
            return batch
        if not all(isinstance(one, Batch) for one in batch):
            raise ConfigError(
                "collate takes a Batch as the data set gives it; got something else from it: a "
                "Trainer needs remove_unused_columns=False, or it takes the teacher's arrays away"
            )
        return self.read(torch.cat([one["docs"] for one in batch]).numpy())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; `skip` is over with the one it was given for."""
        if epoch != self.epoch:
            self.epoch, self.skip = epoch, 0

    @property
    def order(self) -> Docs:
        """Documents (rows of the plan's document space) in the order of the epoch, this rank's."""
        order = document_order(
            len(self.docs),
            seed=self.seed,
            epoch=self.epoch,
            batch=self.batch,
            lengths=self.cache.plan.per_document["doc_len"][self.docs],
            window=self.window,
        )
        return self.docs[self._share(order)]

    @property
    def _order(self) -> Docs:
        """`order`, kept until something is set that it depends on."""
        where = (self.rank, self.ranks, self.skip, self.drop_last)
        key = (self.seed, self.epoch, self.batch, self.window, *where)
        made = self._made
        if made is None or made[0] != key:
            made = self._made = key, self.order
        return made[1]

    def _share(self, order: Docs) -> Docs:
        return rank_share(
            order,
            batch=self.batch,
            rank=self.rank,
            ranks=self.ranks,
            skip=self.skip,
            drop_last=self.drop_last,
        )
