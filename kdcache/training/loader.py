"""Feed a cache to kdcache's own training loop, a batch ahead of it.

A thread reads and collates the next batch while the one before it is used. It is started for that
batch and ends with it, so nothing is left of an iterator that is dropped, and a fork finds no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from kdcache.plans import Docs
from kdcache.plans.batch import Batch
from kdcache.spans import READ, span
from kdcache.training.documents import CachedDocuments, rank_share

__all__ = ["CachedDocuments", "EpochSampler", "Loader", "RankBatches", "make_loader"]


class Documents(Protocol):
    """A data set whose epochs kdcache's loader cuts into turns: of one cache, or of several.

    Attributes:
        batch: documents of a step over all ranks.
        ahead: whether the next batch is read in a thread while one is used.
        batches: class of the sampler of turns; None: `RankBatches`.
    """

    batch: int
    ahead: bool
    batches: Any

    def __len__(self) -> int: ...

    @property
    def order(self) -> Docs: ...

    def turn(self, docs: Sequence[int]) -> Batch: ...

    def set_epoch(self, epoch: int) -> None: ...


class EpochSampler(Sampler[int]):
    """The documents of `dataset` in the order of its epoch."""

    def __init__(self, dataset: Documents) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return map(int, self.dataset.order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.dataset.set_epoch(epoch)


class RankBatches(BatchSampler):
    """The batches of one rank in the order of the epoch: its share of every step, in turn.

    A last step that is not full is shared as evenly as it goes, no document is read twice, and all
    ranks have as many turns: where one has no document left, its batch is empty. With `drop_last`,
    documents that do not fill a step are left out.
    """

    sampler: EpochSampler

    def __init__(
        self, sampler: EpochSampler, batch_size: int, drop_last: bool, *, ranks: int, rank: int
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.ranks, self.rank = ranks, rank

    @property
    def step(self) -> int:
        """Documents of a step over all ranks."""
        wanted, turn = self.sampler.dataset.batch, self.batch_size * self.ranks
        return turn if wanted % turn else wanted

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.step)
        turns = 0 if self.drop_last else -(-rest // self.ranks)  # of the rank that has most
        return full * self.step // (self.batch_size * self.ranks) + -(-turns // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        options = {"batch": self.step, "ranks": self.ranks, "rank": self.rank}
        docs = rank_share(self.sampler.dataset.order, drop_last=self.drop_last, **options)
        for turn in range(len(self)):
            yield docs[turn * self.batch_size : (turn + 1) * self.batch_size].tolist()


class Pending(Mapping[str, torch.Tensor]):
    """A batch that a thread reads; whoever looks into it waits until it is there.

    What went wrong in the thread is raised where the batch is asked for.
    """

    def __init__(self, dataset: Documents, docs: list[int], pin_memory: bool) -> None:
        self._job = (dataset, docs, pin_memory)
        self._error: BaseException | None = None
        self._batch = Batch()
        self._thread = threading.Thread(target=self._read, name="kdcache-loader")
        self._thread.start()

    def _read(self) -> None:
        dataset, docs, pin_memory = self._job
        try:
            with span(READ):
                batch = dataset.turn(docs)
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


class _Rows(Dataset[Batch]):
    """Takes the documents that an EpochSampler names for indices."""

    def __init__(self, dataset: Documents) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, docs: list[int]) -> Batch:
        with span(READ):
            return self.dataset.turn(docs)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)


class _Ahead(_Rows):
    """Starts to read a batch when it is asked for.

    Both `Loader` and the loader that accelerate makes of it (which moves a batch to its device, and
    asks for the next, before it hands out the first) have one such batch at a time.
    """

    def __init__(self, dataset: Documents, pin_memory: bool) -> None:
        super().__init__(dataset)
        self.pin_memory = pin_memory

    def __getitems__(self, docs: list[int]) -> Any:
        return Pending(self.dataset, docs, self.pin_memory)


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
    dataset: Documents,
    *,
    batch_size: int,
    drop_last: bool = False,
    pin_memory: bool = False,
    ranks: int = 1,
    rank: int = 0,
) -> Loader:
    """A DataLoader over batches of `batch_size` documents, for one of so many ranks.

    It draws nothing from torch's global generator, so that reading does not change training.
    """
    return Loader(
        _Ahead(dataset, pin_memory) if dataset.ahead else _Rows(dataset),
        batch_sampler=(dataset.batches or RankBatches)(
            EpochSampler(dataset), batch_size, drop_last, ranks=ranks, rank=rank
        ),
        collate_fn=_whole,
        generator=torch.Generator(),
    )


def _whole(batch: Any) -> Any:
    """`__getitems__` has collated the batch already."""
    return batch
