"""The documents that a run draws its batches from: what weights of documents are worked out of."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from kdcache.corpora.documents import Corpus, open_corpus
from kdcache.errors import ConfigError, CorpusError, MismatchError
from kdcache.labels import known
from kdcache.labels.classes import CLASSES
from kdcache.manifest import digest
from kdcache.plans import Array, Docs, Plan, PlanConfig
from kdcache.tasks import TASKS

T = TypeVar("T")
Files = str | tuple[str, ...]
"""The file of a corpus; of several caches the file of each."""


class Cells(NamedTuple):
    """A column of a corpus: a value for each document, and where each stands."""

    values: list[Any]
    where: list[str]


class Pool:
    """The documents of one cache that a run trains on.

    Attributes:
        plan: where they lie.
        docs: [D] int64, their rows among the documents of the plan.
        cache: what to call the cache in an error.
        number: its number among the caches of the run, from 0, of which there are `caches`.
    """

    def __init__(
        self, plan: Plan, docs: Docs, *, cache: str = "the cache", number: int = 0, caches: int = 1
    ) -> None:
        self.plan, self.docs = plan, docs
        self.cache, self.number, self.caches = cache, number, caches
        self._cells: dict[tuple[str, str], Cells] = {}
        self._numbers: dict[tuple[str, str], Array] = {}
        self._once: dict[Hashable, Any] = {}

    @cached_property
    def class_counts(self) -> torch.Tensor:
        """Documents of each class, [C] int64; ConfigError where a document has not one class."""
        if self.plan.label_kind is not CLASSES or self.plan.task.selects:
            raise ConfigError("it is for documents of one class each, and these are of none")
        labels = self.plan.labels(self.docs)
        counts = np.bincount(labels[known(labels)], minlength=len(self.plan.config.classes or ()))
        return torch.from_numpy(counts)

    def column(self, name: str, file: Files) -> list[Any]:
        """A column of the corpus, read from `file` once: the value of each document of it.

        Raises ConfigError for a column that is not there, MismatchError for another corpus.
        """
        return self._column(name, file).values

    def numbers(self, name: str, file: Files) -> Array:
        """The same as float64; CorpusError for what is no number of 0 or more."""
        key = name, self._file(name, file)
        if key not in self._numbers:
            cells = self._column(name, file)
            pairs = zip(cells.values, cells.where, strict=True)
            self._numbers[key] = np.asarray([_number(name, *pair) for pair in pairs], np.float64)
        return self._numbers[key]

    def row(self, docs: torch.Tensor) -> Array:
        """Of documents of a batch, [B], the rows in the corpus: those of its columns."""
        rows: Array = self.plan.per_document["doc_id"][docs.numpy()]
        return rows

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """What is worked out of all documents, the first time it is asked for."""
        if what not in self._once:
            self._once[what] = make()
        found: T = self._once[what]
        return found

    @property
    def record(self) -> dict[str, str]:
        """A digest of every column that was read, by its name."""
        return {name: digest(list(map(repr, c.values))) for (name, _), c in self._cells.items()}

    def _column(self, name: str, file: Files) -> Cells:
        key = name, self._file(name, file)
        if key not in self._cells:
            self._cells[key] = read_column(name, key[1], self.plan.config, self.cache)
        return self._cells[key]

    def _file(self, name: str, file: Files) -> str:
        """The file of this cache."""
        files = (file,) if isinstance(file, str) else file
        if len(files) != self.caches or not all(files):
            given = len(list(filter(None, files)))
            raise ConfigError(
                f"column {name!r} is in file = the corpus of each cache, in their order: expected "
                f"{self.caches}; got {given}: name them in data.example_weights.file, of a stage "
                "in stages.STAGE.data.example_weights.file"
            )
        return files[self.number]


def read_column(name: str, file: str, planned: PlanConfig, cache: str) -> Cells:
    """A column of the corpus that a plan was made of, which a plan does not keep.

    The corpus is told by its texts and labels, in their order: it may have got columns since.

    Raises ConfigError, CorpusError or MismatchError as `Pool.column`.
    """
    task, corpus = TASKS[planned.task], planned.corpus
    opened = open_corpus(
        file,
        text_columns=corpus["text_columns"],
        label_column=corpus["label_column"] or ("" if task.labelled else None),
        limit=corpus["documents"],
        labelled=task.labelled,
        words=task.words,
        tags=task.tags,
    )
    _require_column(name, file, opened)
    found = Cells([], [])
    states = hashlib.sha256(), hashlib.sha256()  # where labels are for nothing, with and without
    for where, row in opened.rows(name):
        if name not in row:
            raise CorpusError(f"{where}: no column {name!r}; every document needs one")
        document = opened.document(where, row)
        for state, one in zip(states, (document, document._replace(label=None)), strict=True):
            state.update(one.content)
        found.values.append(row[name])
        found.where.append(where)
    if corpus["sha256"] not in [state.hexdigest() for state in states]:
        raise MismatchError(
            f"{file} is not the corpus of {cache}: texts or labels of its first "
            f"{corpus['documents']:,} documents are others, or in another order; add the column "
            f"{name!r} to the file that was planned"
        )
    return found


def _require_column(name: str, file: str, corpus: Corpus) -> None:
    there = dict.fromkeys([*corpus.text_columns, *corpus.label_columns, *corpus.unused])
    if name not in there:
        raise ConfigError(f"{file} has no column {name!r}; its columns are {', '.join(there)}")


def _number(name: str, cell: Any, where: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise CorpusError(
            f"{where}: column {name!r} must be a finite number of 0 or more; got {cell!r}"
        )
    return value
