"""What is known of documents while they are weighed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from kdcache.errors import CorpusError
from kdcache.losses.bound import Bound
from kdcache.losses.pairs import Pairs
from kdcache.losses.pool import Files, Pool
from kdcache.losses.selector import Selector
from kdcache.losses.taught import labels_at, nats_on_labels, of_documents
from kdcache.plans.batch import Batch
from kdcache.signals import HeadLabels


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is known of B documents that are weighed.

    What a document weighs is to depend on nothing but the document, the step, the seed and what was
    learnt: steps are cut into batches, and dealt out to ranks, in ways that must not count.

    Attributes:
        batch: their inputs and labels, and what was read of the cache, on the host.
        pool: all documents of the cache that the run trains on.
        seed: of the run.
        step: steps that the run has taken before this one.
        soft: the teacher's soft labels in the batch, of a way that asks for them.
        pairs: what decodes them.
        vectors: the teacher's vectors of the documents of the batch, of a way that asks for them.
        selector: what the way has learnt so far, if it learns.
        every: the same of all documents of `pool`, a batch at a time, read anew at each call.
    """

    batch: Batch
    pool: Pool
    seed: int
    step: int
    soft: Bound | None
    pairs: Pairs
    vectors: Bound | None = None
    selector: Selector | None = None
    every: Callable[[], Iterator[Asked]] = lambda: iter(())

    def numbers(self, column: str, file: Files) -> torch.Tensor:
        """A column of the corpus that holds numbers, [B] float64."""
        return torch.from_numpy(self.pool.numbers(column, file)[self.pool.row(self.batch["docs"])])

    def cells(self, column: str, file: Files) -> list[Any]:
        """A column of the corpus as its file has it: B texts, numbers or lists."""
        found = self.pool.column(column, file)
        return [found[row] for row in self.pool.row(self.batch["docs"])]

    def names(self, column: str, file: Files) -> list[str]:
        """The same as texts; CorpusError for a document that has none."""
        found = ["" if cell is None else str(cell).strip() for cell in self.cells(column, file)]
        if not all(found):
            raise CorpusError(
                f"{file}: column {column!r} is empty somewhere; every document needs one"
            )
        return found

    @property
    def document_vectors(self) -> torch.Tensor:
        """The teacher's vectors of the documents, [B, H] float32."""
        assert self.vectors is not None
        found: torch.Tensor = self.pairs.teacher_of(self.vectors).dense()
        return found

    @cached_property
    def soft_labels(self) -> Any:
        """The teacher's soft labels, `SoftLabels` or `TeacherOutputs` of N rows."""
        assert self.soft is not None
        found = self.pairs.teacher_of(self.soft)
        return found.dense() if isinstance(found, HeadLabels) else found

    @cached_property
    def nats(self) -> torch.Tensor:
        """Cross-entropy of the teacher on each document's labels, [B], the mean over its rows; that
        of a teacher that knows nothing where there is no label."""
        assert self.soft is not None
        return nats_on_labels(self.soft, self.pairs)

    @property
    def labels(self) -> torch.Tensor:
        """The labels of the rows of `soft_labels`."""
        assert self.soft is not None
        return labels_at(self.batch, self.soft.rows)

    def mean(
        self, rows: torch.Tensor, there: torch.Tensor | None = None, nothing: float = 1.0
    ) -> torch.Tensor:
        """Of values of the rows of `soft_labels`, [N], the mean over those of each document that
        are `there`, [B]; `nothing` where it has none."""
        assert self.soft is not None
        return of_documents(self.batch, self.soft.rows, rows, there, nothing)
