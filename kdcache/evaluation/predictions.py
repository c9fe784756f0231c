"""Predictions of a classifier as a file, a row per document, or per word of it, in corpus order."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from kdcache.corpora.documents import Corpus
from kdcache.errors import ConfigError, CorpusError
from kdcache.evaluation.cuts import Cut
from kdcache.labels.base import Floats
from kdcache.models import Tokenizer
from kdcache.plans import Plan

BATCH = 512  # documents tokenised at once

Row = Sequence[Any]


def write_predictions(
    path: Path,
    plan: Plan,
    logits: Floats,
    *,
    corpus: Corpus,
    tokenizer: Tokenizer,
    cuts: Sequence[Cut] = (),
) -> None:
    """Write text, slices, label, prediction and probabilities of each document of `corpus`, or of
    each of its words, numbered: as JSON lines where `path` ends in .jsonl, else as CSV.

    `logits` are [rows, C]. Raises ConfigError for a language model, which predicts tokens, and
    CorpusError where the corpus is another than the plan's by now.
    """
    kind, ids = plan.label_kind, plan.per_document["doc_id"][plan.docs]
    if kind.predictions is None:
        raise ConfigError(f"predictions are not written for {plan.task}")
    counts = plan.spans(plan.docs, plan.task.rows)[1]
    order = np.argsort(np.repeat(ids, counts), kind="stable")
    labels = plan.labels(plan.docs)[order]
    told = kind.predictions(logits[order], labels, plan.config.classes or [])
    numbered = ("row",) if plan.task.selects else ()
    texts = ("text", "text_pair")[: len(corpus.text_columns)]
    columns = ("document", *numbered, *texts, *(f"slice: {cut.column}" for cut in cuts))
    expected = plan.config.corpus["documents"]
    rows_of = np.bincount(ids, counts, expected).astype(np.int64)

    def rows() -> Iterator[Row]:
        rest, number = iter(told.rows), -1
        for number, read in enumerate(_texts(corpus, plan, tokenizer)):
            count = rows_of[number] if number < expected else 0
            sliced = [cut.name(number) for cut in cuts]
            for place, said in enumerate(islice(read, count)):
                yield (number, *((place,) if numbered else ()), *said, *sliced, *next(rest))
        if number + 1 != expected:
            raise CorpusError(
                f"{corpus.tables[0].name} had {expected:,} documents when it was scored and has "
                f"{number + 1:,} now: leave the corpus as it is while it is read"
            )

    with path.open("w", newline="", encoding="utf-8") as file:
        WRITERS.get(path.suffix, _write_csv)(file, (*columns, *told.columns), rows())


def _texts(corpus: Corpus, plan: Plan, tokenizer: Tokenizer) -> Iterator[Iterable[Row]]:
    """Of each document the texts of its rows: its own, or where words are labelled each word."""
    if not plan.task.words:
        for document in corpus:
            texts = (document.text, *([] if document.pair is None else [document.pair]))
            yield repeat(texts)
        return
    stream, first = iter(corpus), 0
    while batch := list(islice(stream, BATCH)):
        words: list[list[Row]] = [[] for _ in batch]
        for entry in plan.task.encode(batch, first, tokenizer, plan.config)[0]:
            place = entry.doc - first
            words[place] += [(batch[place].words[word],) for word in entry.labels]
        yield from words
        first += len(batch)


def _write_csv(file: TextIO, columns: Row, rows: Iterable[Row]) -> None:
    """Numbers have 6 digits, lists are JSON, and what is None is empty."""
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([CELLS.get(type(cell), _same)(cell) for cell in row] for row in rows)


def _write_jsonl(file: TextIO, columns: Row, rows: Iterable[Row]) -> None:
    for row in rows:
        record = dict(zip(columns, row, strict=True))
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _same(cell: Any) -> Any:
    return cell


CELLS: dict[type, Callable[[Any], Any]] = {
    float: lambda cell: f"{cell:.6g}",
    list: lambda cell: json.dumps(cell, ensure_ascii=False),
}
"""How cells of a type are written in CSV."""

WRITERS: dict[str, Callable[[TextIO, Row, Iterable[Row]], None]] = {".jsonl": _write_jsonl}
"""What writes a file by the end of its name; CSV if nothing."""
