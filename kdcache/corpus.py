"""A corpus: documents in files, folders, globs or a `datasets` dataset, read as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, get_args

from kdcache.errors import ConfigError, CorpusError, one_of
from kdcache.readers import Unit as Unit
from kdcache.readers import name_of, rows_of

TEXT_COLUMNS = ("text", "sentence", "content", "document", "review", "question", "query", "string")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("#1 String", "#2 String"),
)
LABEL_COLUMNS = ("label", "labels", "category", "class", "intent", "quality", "target", "score")


class Document(NamedTuple):
    """One row of a corpus; `where` is the file and line to name in an error."""

    text: str
    pair: str | None
    label: str | int | float | None
    where: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where documents stand and which of their columns are text and label.

    Iterating yields `Document`s in file order; `limit` keeps the first ones.
    """

    source: Any
    text_columns: tuple[str, ...]
    label_column: str | None
    limit: int | None = None
    unit: Unit = "line"

    def __iter__(self) -> Iterator[Document]:
        rows = islice(rows_of(self.source, self.unit), self.limit)
        return (self._document(where, row) for where, row in rows)

    def _document(self, where: str, row: Mapping[str, Any]) -> Document:
        texts = [self._text(where, row, column) for column in self.text_columns]
        label = None
        if self.label_column is not None:
            _require(where, row, self.label_column)
            label = row[self.label_column]
        return Document(texts[0], texts[1] if len(texts) > 1 else None, label, where)

    @staticmethod
    def _text(where: str, row: Mapping[str, Any], column: str) -> str:
        _require(where, row, column)
        if not isinstance(row[column], str):
            kind = type(row[column]).__name__
            raise CorpusError(f"{where}: column {column!r} must hold text; got {kind}")
        text = str(row[column])
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise CorpusError(f"{where}: column {column!r} is no text: {error.reason}") from error
        return text


def open_corpus(
    source: Any,
    *,
    text_columns: Iterable[str] = (),
    label_column: str | None = None,
    limit: int | None = None,
    unit: Unit = "line",
) -> Corpus:
    """Find the files of `source` and its text and label columns, guessing those not named.

    `source` is a path, a folder, a glob, a list of those, or a `datasets.Dataset`. Pass the empty
    string as `label_column` for no labels.

    Raises CorpusError if there is nothing to read, ConfigError if a column is not there.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more; got {limit}")
    one_of("unit", unit, get_args(Unit))
    first = next(rows_of(source, unit), None)
    if first is None:
        raise CorpusError(f"{name_of(source)} holds no documents")
    columns = list(first[1])
    named = [text_columns] if isinstance(text_columns, str) else list(text_columns)
    texts = tuple(named) or _guess_text(columns)
    if len(texts) > 2:
        raise ConfigError(f"one or two text columns, not {len(texts)}: {', '.join(texts)}")
    label = _guess_label(columns, texts) if label_column is None else label_column or None
    for column in (*texts, *([label] if label else [])):
        if column not in columns:
            raise ConfigError(
                f"{first[0]} has no column {column!r}; its columns are {', '.join(columns)}"
            )
    return Corpus(source=source, text_columns=texts, label_column=label, limit=limit, unit=unit)


def _require(where: str, row: Mapping[str, Any], column: str) -> None:
    if column not in row:
        raise CorpusError(f"{where}: no column {column!r}; it has {', '.join(row)}")


def _guess_text(columns: list[str]) -> tuple[str, ...]:
    by_name = {column.lower(): column for column in columns}
    for first, second in PAIR_COLUMNS:
        if first.lower() in by_name and second.lower() in by_name:
            return by_name[first.lower()], by_name[second.lower()]
    for name in TEXT_COLUMNS:
        if name in by_name:
            return (by_name[name],)
    if len(columns) == 1:
        return (columns[0],)
    raise ConfigError(
        f"cannot tell which column holds the text; name it with --text-column "
        f"(columns: {', '.join(columns)})"
    )


def _guess_label(columns: list[str], texts: tuple[str, ...]) -> str | None:
    by_name = {column.lower(): column for column in columns if column not in texts}
    return next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)
