"""The plan: a tokenised corpus in a seeded order, cut into parts of whole documents.

A plan fixes every array shape before the teacher runs. Its rows live in three spaces
(`tasks.Space`); each gives every part the same number of rows, so that a shard has one writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdcache.labels import LABEL_KINDS, LabelKind, known
from kdcache.manifest import FORMAT, NAMED, canonical
from kdcache.plans.config import PlanConfig, document_columns
from kdcache.plans.parts import Array, part_rows
from kdcache.plans.subsample import random_below, sampled_count, spread
from kdcache.rendering.parts import fields
from kdcache.tasks import IGNORE_INDEX, STORED, TASKS, RowSpace, Space, Subset, Task

Docs = npt.NDArray[np.int64]


class Column(Protocol):
    """Rows on disk: sliced like an array, read only where sliced."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A tokenised corpus cut into `parts`.

    Attributes:
        rows: rows per part in each space.
        per_document: the arrays of `document_columns`, each [parts * rows["document"], ...].
        columns: `tokens` [parts * rows["token"]]; where the task selects tokens also
            `masked_position` (int32, within the document) and `masked_label`, the token that was
            there or the class of the word, [parts * rows["selected"]].
        format: of the store it lies in; a new plan's is that of new stores.
        read_for: what a teacher of another task is run for over it; None: its own task.
    """

    config: PlanConfig
    parts: int
    rows: Mapping[Space, int]
    per_document: Mapping[str, Array]
    columns: Mapping[str, Column] = field(repr=False)
    format: int = FORMAT
    read_for: Task | None = None

    @property
    def task(self) -> Task:
        """What the teacher is run for."""
        return self.read_for or self.own_task

    @property
    def own_task(self) -> Task:
        """What it was made for, and has labels for."""
        return TASKS[self.config.task]

    @property
    def label_kind(self) -> LabelKind:
        """The kind of its labels, as the teacher reads it."""
        own = self.config.label_kind
        return LABEL_KINDS[own if self.read_for is None else self.read_for.kinds[0]]

    @property
    def stored_rows(self) -> dict[str, int]:
        """Rows per part in each space, by the names that manifests have for them."""
        return {STORED[space]: rows for space, rows in self.rows.items()}

    def read_as(self, task: Task) -> Plan:
        """The plan as a teacher that is run for `task` over it reads it: see `tasks.over`."""
        return self if task == self.own_task else replace(self, read_for=task)

    @cached_property
    def docs(self) -> npt.NDArray[np.int64]:
        """Rows of the document space that hold a document (the rest is padding)."""
        return np.flatnonzero(self.per_document["doc_len"]).astype(np.int64)

    @property
    def documents(self) -> int:
        """Documents in the plan: corpus rows, times views, or windows of long ones."""
        return len(self.docs)

    @property
    def tokens(self) -> int:
        """Tokens of all documents, padding left out."""
        return int(self.per_document["doc_len"].sum(dtype=np.int64))

    @property
    def selected(self) -> int:
        """Selected positions of all documents."""
        return int(self.per_document["masked_len"].sum(dtype=np.int64))

    @property
    def token_types(self) -> int:
        """Token types its documents have: 0 where the tokenizer knows none, 2 for text pairs."""
        if not self.config.tokenizer["type_ids"]:
            return 0
        return 1 + bool((self.per_document["pair_start"] < self.per_document["doc_len"]).any())

    def part_rows(self, space: RowSpace) -> int:
        """Rows per part in a space, padding included."""
        return part_rows(self.rows, space)

    def count(self, space: RowSpace) -> int:
        """Real rows (padding left out) of a space."""
        if isinstance(space, Subset):
            return self.extent(self.docs, space)
        return {"document": self.documents, "token": self.tokens, "selected": self.selected}[space]

    def part_docs(self, part: int) -> npt.NDArray[np.int64]:
        """Rows of the document space that hold the documents of one part."""
        size = self.rows["document"]
        low, high = np.searchsorted(self.docs, [part * size, (part + 1) * size])
        return self.docs[low:high]

    def spans(self, docs: npt.NDArray[np.int64], space: RowSpace) -> tuple[Array, Array]:
        """First row and number of rows of each document in a space."""
        if isinstance(space, Subset):
            return self._subset_spans(docs, space)
        if space == "document":
            return docs, np.ones(len(docs), np.int64)
        name = "doc" if space == "token" else "masked"
        return self.per_document[f"{name}_start"][docs], self.per_document[f"{name}_len"][docs]

    def _subset_spans(self, docs: npt.NDArray[np.int64], space: Subset) -> tuple[Array, Array]:
        starts, counts = self.spans(docs, space.of)
        part = docs // self.rows["document"]
        begin = starts - part * self.rows[space.of]
        first, end = (sampled_count(rows, space.fraction) for rows in (begin, begin + counts))
        return part * self.part_rows(space) + first, end - first

    def sampled_rows(self, docs: npt.NDArray[np.int64], space: RowSpace) -> npt.NDArray[np.int64]:
        """Which rows of documents a space holds: numbers among all they have in the space it is a
        subset of, one document after the other; all of them where it is no subset.
        """
        counts = self.spans(docs, space)[1]
        if not isinstance(space, Subset):
            return np.arange(counts.sum(dtype=np.int64))
        lens = self.spans(docs, space.of)[1].astype(np.int64)
        before = np.repeat(np.cumsum(lens) - lens, counts)
        return before + spread(lens, counts, random_below(self.config.seed, docs, lens))

    def extent(self, docs: npt.NDArray[np.int64], space: RowSpace) -> int:
        """Rows the documents of one part fill in a space, from the part's first row."""
        if space == "document":
            return len(docs)
        return int(self.spans(docs, space)[1].sum(dtype=np.int64))

    def labels(self, docs: npt.NDArray[np.int64]) -> Array:
        """The labels that people gave the rows which the task's logits have in documents.

        None of a teacher of another task: a row of IGNORE_INDEX for each of its rows.
        """
        if self.read_for is not None:
            rows = self.spans(docs, self.read_for.rows)[1].sum(dtype=np.int64)
            return np.full(rows, IGNORE_INDEX, np.int64)
        if not self.task.selects:
            return self.label_kind.of(self.per_document, docs)
        reader: Any = self.columns["masked_label"]
        return self.at_rows(docs, reader.read(*self.spans(docs, "selected")))

    def at_rows(
        self, docs: npt.NDArray[np.int64], labels: Array, positions: Array | None = None
    ) -> Array:
        """Labels of the selected tokens of documents where the task's rows are: of every token
        there is one, IGNORE_INDEX where it is not selected. `positions` are theirs; None: read.
        """
        if self.task.rows == "selected":
            return labels
        if positions is None:
            reader: Any = self.columns["masked_position"]
            positions = reader.read(*self.spans(docs, "selected"))
        lens, counts = (self.spans(docs, space)[1] for space in ("token", "selected"))
        starts = np.cumsum(lens) - lens
        found = np.full(int(lens.sum(dtype=np.int64)), IGNORE_INDEX, np.int64)
        found[np.repeat(starts, counts) + positions] = labels
        return found

    @cached_property
    def labelled_docs(self) -> npt.NDArray[np.int64]:
        """Rows of the document space that hold a document with a hard label."""
        if self.read_for is not None:
            return self.docs[:0]
        if not self.label_kind.column:
            return self.docs
        rows = known(self.labels(self.docs))
        if not self.task.selects:
            return self.docs[rows]
        document = np.repeat(np.arange(len(self.docs)), self.per_document["masked_len"][self.docs])
        return self.docs[np.bincount(document[rows], minlength=len(self.docs)) > 0]

    @property
    def labelled(self) -> int:
        """Documents with a hard label."""
        return len(self.labelled_docs)

    @cached_property
    def sha256(self) -> str:
        """The plan's identity: configuration, cuts, documents and every token."""
        return self.sha256_in(self.format)

    def sha256_in(self, form: int, name: str | None = None) -> str:
        """The plan's identity in a store of format `form`.

        Before the third what the tokenizer is called was part of it: `name`, or as it is here.
        """
        config = self.config.to_json()
        if name is not None:
            config["tokenizer"]["name"] = name
        if form >= NAMED:
            config["tokenizer"].pop("name", None)
        state = hashlib.sha256(canonical([config, self.parts, self.stored_rows]))
        for name in document_columns(self.config):
            state.update(self.per_document[name].tobytes())
        for name in sorted(self.columns):
            for part in range(self.parts):
                size = self.rows[column_space(name)]
                state.update(self.columns[name][part * size : (part + 1) * size].tobytes())
        return state.hexdigest()

    def __repr__(self) -> str:
        selected = f", {self.selected:,} {self.task.selected}" if self.selected else ""
        return (
            f"<Plan {self.config.task}: {self.documents:,} documents, {self.tokens:,} tokens"
            f"{selected}, {self.parts} part{'s' if self.parts != 1 else ''}, "
            f"sha256 {self.sha256[:12]}>"
        )

    def _repr_html_(self) -> str:
        config = self.config
        rows = {
            "plan": f"`{self.sha256}`",
            "task": config.task,
            "documents": f"{self.documents:,}, {self.labelled:,} of them labelled",
            "tokens": f"{self.tokens:,}, {config.max_length} of a document at most",
            **({self.task.selected: f"{self.selected:,}"} if self.selected else {}),
            "classes": ", ".join(config.classes or ()) or "-",
            "parts": f"{self.parts:,}",
        }
        return fields(rows.items()).html()


def column_space(name: str) -> Space:
    """The row space a plan column lives in."""
    return "token" if name == "tokens" else "selected"
