"""Feed a cache to a training loop: order fixed by (seed, epoch), only the arrays that are needed.

The order is a function of the seed, the epoch and the global batch size. Batches are cut from it
and then dealt out to ranks, so any number of ranks trains on the same batches, and a run that
skips the batches it has seen continues as if it had not stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from kdcache.batch import Batch, Docs, epoch_order
from kdcache.plans import Array
from kdcache.store import Cache


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


class CachedDocuments(Dataset[Batch]):
    """The documents of a cache, read a batch at a time.

    Attributes:
        arrays: signal arrays to read; no others are touched.
        batch: documents of one training step over all ranks.
        window: batches among which documents are sorted by length; 0: they are not.
        epoch: epoch whose order `order` gives.
        docs: rows of the plan's example space that are read; by default all documents.
    """

    def __init__(
        self,
        cache: Cache,
        arrays: Sequence[str],
        *,
        seed: int,
        batch: int = 1,
        window: int = 0,
        docs: Docs | None = None,
    ) -> None:
        self.cache = cache
        self.docs = cache.plan.docs if docs is None else docs
        self.arrays = list(arrays)
        self.seed, self.batch, self.window = seed, batch, window
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.docs)

    def __getitem__(self, doc: int) -> Batch:
        return self.__getitems__([doc])

    def __getitems__(self, docs: list[int]) -> Batch:
        return self.cache.batch(np.asarray(docs, np.int64), self.arrays)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; accelerate calls this on the data set or on its sampler."""
        self.epoch = epoch

    @property
    def order(self) -> Docs:
        """Documents (rows of the plan's example space) in the order of the epoch."""
        order = document_order(
            len(self.docs),
            seed=self.seed,
            epoch=self.epoch,
            batch=self.batch,
            lengths=self.cache.plan.examples["doc_len"][self.docs],
            window=self.window,
        )
        return self.docs[order]


class EpochSampler(Sampler[int]):
    """The documents of `dataset` in the order of its epoch."""

    def __init__(self, dataset: CachedDocuments) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return map(int, self.dataset.order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.dataset.set_epoch(epoch)


def make_loader(
    dataset: CachedDocuments, *, batch_size: int, drop_last: bool = False, pin_memory: bool = False
) -> DataLoader[Any]:
    """A DataLoader over batches of `batch_size` documents, for one rank.

    It draws nothing from torch's global generator, so that reading does not change training.
    """
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(EpochSampler(dataset), batch_size, drop_last),
        collate_fn=_whole,
        generator=torch.Generator(),
        pin_memory=pin_memory,
    )


def _whole(batch: Any) -> Any:
    """`__getitems__` has collated the batch already."""
    return batch
