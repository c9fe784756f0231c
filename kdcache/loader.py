"""Feed a cache to a training loop: order fixed by (seed, epoch), only the arrays that are needed.

The order is a function of the seed, the epoch and the global batch size. Batches are cut from it
and then dealt out to ranks, so any number of ranks trains on the same batches, and a run that
skips the batches it has seen continues as if it had not stopped.

A thread reads and collates the next batch while the one before it is used. It is started for that
batch and ends with it, so nothing is left of an iterator that is dropped, and a fork finds no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
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
        ahead: whether a loader reads the next batch in a thread while one is used.
        docs: rows of the plan's example space that are read; by default all documents.
    """

    ahead = True

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


class Pending(Mapping[str, torch.Tensor]):
    """A batch that a thread reads; whoever looks into it waits until it is there.

    What went wrong in the thread is raised where the batch is asked for.
    """

    def __init__(self, dataset: CachedDocuments, docs: list[int], pin_memory: bool) -> None:
        self._job = (dataset, docs, pin_memory)
        self._error: BaseException | None = None
        self._batch = Batch()
        self._thread = threading.Thread(target=self._read, name="kdcache-loader")
        self._thread.start()

    def _read(self) -> None:
        dataset, docs, pin_memory = self._job
        try:
            batch = dataset.__getitems__(docs)
            self._batch = batch.pin_memory() if pin_memory else batch
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait for the end of the thread, whatever came of it."""
        self._thread.join()

    def result(self) -> Batch:
        """The batch; raises what the thread raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._batch

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The batch on another device; from pinned memory, copied while that device works."""
        return self.result().to(device, non_blocking=non_blocking or self._job[2])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.result()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.result())

    def __len__(self) -> int:
        return len(self.result())


class _Ahead(Dataset[Pending]):
    """Starts to read a batch when it is asked for.

    Both `Loader` and the loader that accelerate makes of it (which moves a batch to its device, and
    asks for the next, before it hands out the first) have one such batch at a time.
    """

    def __init__(self, dataset: CachedDocuments, pin_memory: bool) -> None:
        self.dataset, self.pin_memory = dataset, pin_memory

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, docs: list[int]) -> Pending:
        return Pending(self.dataset, docs, self.pin_memory)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)


class Loader(DataLoader[Any]):
    """A DataLoader that hands out a batch when the reading of the next has begun."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # any iterator will do
        batches = super().__iter__()
        current = next(batches, None)
        try:
            while current is not None:
                ready = current.result() if isinstance(current, Pending) else current
                current = next(batches, None)
                yield ready
        finally:
            if isinstance(current, Pending):
                current.wait()


def make_loader(
    dataset: CachedDocuments, *, batch_size: int, drop_last: bool = False, pin_memory: bool = False
) -> Loader:
    """A DataLoader over batches of `batch_size` documents, for one rank.

    It draws nothing from torch's global generator, so that reading does not change training.
    """
    return Loader(
        _Ahead(dataset, pin_memory) if dataset.ahead else dataset,
        batch_sampler=BatchSampler(EpochSampler(dataset), batch_size, drop_last),
        collate_fn=_whole,
        generator=torch.Generator(),
    )


def _whole(batch: Any) -> Any:
    """`__getitems__` has collated the batch already."""
    return batch
