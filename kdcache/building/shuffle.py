"""Tokenised documents on their way into a plan: flat files in, the same files in plan order out."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.corpora.documents import Document
from kdcache.errors import CorpusError
from kdcache.labels import LABEL_KINDS, LabelReader, Labels
from kdcache.models import Tokenizer
from kdcache.plans import LABEL_DTYPE, Array, Plan, PlanConfig, cut, document_columns, round_up
from kdcache.tasks import TASKS, Entry, Space

BATCH = 512  # documents tokenised at once


class PlanBuilder:
    """Files that take tokens in corpus order and give them back in plan order."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.dtype = np.dtype("uint16" if tokenizer.vocab_size <= 65536 else "uint32")
        self.labels = LabelReader()
        self.docs, self.lens, self.pairs = array("q"), array("i"), array("i")
        self.views, self.selected = array("h"), array("i")

    def fill(self, documents: Iterable[Document], config: PlanConfig) -> dict[str, Any]:
        """Tokenise everything; returns documents, truncated and SHA-256 of the corpus."""
        task, state = TASKS[config.task], hashlib.sha256()
        count = truncated = 0
        kind = np.dtype(np.int64) if task.labelled else self.dtype  # of words, or of tokens
        with (
            (self.folder / "tokens").open("wb") as tokens,
            (self.folder / "masked_position").open("wb") as positions,
            (self.folder / "masked_label").open("wb") as masked_labels,
        ):
            for batch in _batched(documents, BATCH):
                starts: list[int] = []
                for document in batch:
                    state.update(document.content)
                    starts.append(len(self.labels))
                    for label in task.labels_of(document) if task.labelled else ():
                        self.labels.add(label, document.where)
                entries, cut_off = task.encode(batch, count, self.tokenizer, config)
                truncated += cut_off
                for entry in entries:
                    label = entry.labels + (starts[entry.doc - count] if task.labelled else 0)
                    tokens.write(entry.tokens.astype(self.dtype).tobytes())
                    positions.write(entry.positions.astype(np.int32).tobytes())
                    masked_labels.write(label.astype(kind).tobytes())
                    self._note(entry)
                count += len(batch)
        if not self.lens:
            raise CorpusError("no document of the corpus has a token")
        return {"documents": count, "truncated": truncated, "sha256": state.hexdigest()}

    def _note(self, entry: Entry) -> None:
        self.docs.append(entry.doc)
        self.lens.append(len(entry.tokens))
        self.pairs.append(entry.pair_start)
        self.views.append(entry.view)
        self.selected.append(len(entry.positions))

    def arrange(self, config: PlanConfig, labels: Labels | None) -> Plan:
        """Permute the documents by the plan's seed and cut them into parts."""
        lens = np.asarray(self.lens, np.int64)
        selected = np.asarray(self.selected, np.int64)
        order = np.random.default_rng(config.seed).permutation(len(lens))
        bounds, part_tokens = cut(lens[order], config.part_tokens)
        parts = len(bounds) - 1
        task = TASKS[config.task]
        if task.selects and not selected.any():
            raise CorpusError(f"no document of the corpus has a row to learn from: {task.selected}")
        if task.selects and labels is not None:
            self._name_words(labels)
        most = {
            "document": int(np.diff(bounds).max()),
            "selected": max(int(selected[order[a:b]].sum()) for a, b in _pairs(bounds)),
        }
        rows: dict[Space, int] = {"document": round_up(most["document"]), "token": part_tokens}
        if task.selects:
            rows["selected"] = round_up(most["selected"])
        per_document = self._per_document(config, order, bounds, rows, lens, selected, labels)
        starts = np.cumsum(lens) - lens
        columns = {
            "tokens": self._sorted("tokens", self.dtype, order, bounds, part_tokens, starts, lens)
        }
        if "selected" in rows:
            begins = np.cumsum(selected) - selected
            label = np.dtype(LABEL_DTYPE) if task.labelled else self.dtype
            for name, kind in (("masked_position", np.dtype(np.int32)), ("masked_label", label)):
                size = rows["selected"]
                columns[name] = self._sorted(name, kind, order, bounds, size, begins, selected)
        return Plan(
            config=config, parts=parts, rows=rows, per_document=per_document, columns=columns
        )

    def _name_words(self, labels: Labels) -> None:
        """Put the label of each word in the place of its number."""
        path = self.folder / "masked_label"
        named = labels.rows[np.fromfile(path, np.int64)]
        path.write_bytes(named.astype(LABEL_DTYPE).tobytes())

    def _per_document(
        self,
        config: PlanConfig,
        order: Array,
        bounds: Array,
        rows: dict[Space, int],
        lens: Array,
        selected: Array,
        labels: Labels | None,
    ) -> dict[str, Array]:
        size = rows["document"]
        out = {
            name: np.full(((len(bounds) - 1) * size, *column.shape), column.fill, column.dtype)
            for name, column in document_columns(config).items()
        }
        column = LABEL_KINDS[labels.kind].column if labels else ""
        docs = np.asarray(self.docs, np.int64)
        for part, (a, b) in enumerate(_pairs(bounds)):
            chosen, at = order[a:b], slice(part * size, part * size + b - a)
            out["doc_start"][at] = part * rows["token"] + np.cumsum(lens[chosen]) - lens[chosen]
            out["doc_len"][at] = lens[chosen]
            out["doc_id"][at] = docs[chosen]
            out["pair_start"][at] = np.asarray(self.pairs, np.int32)[chosen]
            out["view"][at] = np.asarray(self.views, np.int16)[chosen]
            first = part * rows.get("selected", 0)
            out["masked_start"][at] = first + np.cumsum(selected[chosen]) - selected[chosen]
            out["masked_len"][at] = selected[chosen]
            if labels is not None and "selected" not in rows:
                out[column][at] = labels.rows[docs[chosen]]
        return out

    def _sorted(
        self,
        name: str,
        dtype: np.dtype[Any],
        order: Array,
        bounds: Array,
        size: int,
        starts: Array,
        lens: Array,
    ) -> FileColumn:
        """Copy a spooled file into plan order, every part padded with zeros to `size` rows."""
        path = self.folder / f"{name}.sorted"
        with (self.folder / name).open("rb") as source, path.open("wb") as target:
            for a, b in _pairs(bounds):
                part, filled = bytearray(size * dtype.itemsize), 0
                for doc in order[a:b]:
                    source.seek(int(starts[doc]) * dtype.itemsize)
                    rows = source.read(int(lens[doc]) * dtype.itemsize)
                    part[filled : filled + len(rows)] = rows
                    filled += len(rows)
                target.write(part)
        return FileColumn(path, dtype)


class FileColumn:
    """Rows of a flat file, read where sliced."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype = path, dtype

    def __getitem__(self, rows: slice) -> Array:
        start = rows.start * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, rows.stop - rows.start, offset=start)

    def read(self, starts: Array, counts: Array) -> Array:
        """Some spans of rows, one behind the other."""
        spans = zip(starts.tolist(), counts.tolist(), strict=True)
        found: Array = np.concatenate([self[start : start + count] for start, count in spans])
        return found


def _pairs(bounds: Array) -> list[tuple[int, int]]:
    return list(pairwise(bounds.tolist()))


def _batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    stream = iter(documents)
    while batch := list(islice(stream, size)):
        yield batch
