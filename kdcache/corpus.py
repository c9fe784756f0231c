"""A corpus: documents in files, folders, globs or a `datasets` dataset, read as a stream."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kdcache.errors import ConfigError, CorpusError

Unit = Literal["line", "file"]
Row = tuple[str, Mapping[str, Any]]  # where it stands ("file:line"), its columns

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
        rows = islice(_rows(self.source, self.unit), self.limit)
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
        return str(row[column])


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
    first = next(_rows(source, unit), None)
    if first is None:
        raise CorpusError(f"{_name(source)} holds no documents")
    columns = list(first[1])
    texts = tuple(text_columns) or _guess_text(columns)
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


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else type(source).__name__


def _rows(source: Any, unit: Unit) -> Iterator[Row]:
    if not isinstance(source, (str, Path, list, tuple)):
        return _dataset_rows(source)
    if isinstance(source, (str, Path)) and (Path(source) / "dataset_info.json").is_file():
        return _dataset_rows(_load_dataset(Path(source)))
    return (row for path in _files(source) for row in READERS[_kind(path, unit)](path))


def _load_dataset(folder: Path) -> Any:
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:
        raise CorpusError(f"{folder} is not a readable `datasets` dataset: {error}") from error
    if isinstance(dataset, dict):
        raise CorpusError(f"{folder} holds splits {', '.join(dataset)}; name one of its folders")
    return dataset


def _dataset_rows(dataset: Any) -> Iterator[Row]:
    if not hasattr(dataset, "column_names"):
        raise CorpusError(f"a corpus is a path or a datasets.Dataset; got {_name(dataset)}")
    for index, row in enumerate(dataset):
        yield f"dataset row {index}", row


def _files(source: Any) -> list[Path]:
    if isinstance(source, (list, tuple)):
        return [path for item in source for path in _files(item)]
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        if not found:
            raise CorpusError(f"{path} holds no corpus files ({', '.join(SUFFIXES)})")
        return found
    matches = sorted(Path(p) for p in glob.glob(str(source), recursive=True))
    if not matches:
        raise CorpusError(f"no such corpus: {source}")
    return [found for match in matches for found in _files(match)]


def _kind(path: Path, unit: Unit) -> str:
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise CorpusError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; "
            f"a corpus is one of {', '.join(SUFFIXES)}"
        )
    return "whole" if kind == "text" and unit == "file" else kind


def _csv(path: Path) -> Iterator[Row]:
    return _table(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> Iterator[Row]:
    # Tab-separated corpora (GLUE's among them) carry bare quotation marks: nothing is quoted.
    return _table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _table(path: Path, **dialect: Any) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_decoded(path, file), strict=True, **dialect)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise CorpusError(f"{path}:{line}: malformed: {error}") from error
            if row is None:
                return
            if not row:
                continue
            if header is None:
                header = row
            elif len(row) != len(header):
                raise CorpusError(
                    f"{path}:{line}: expected {len(header)} columns, found {len(row)}"
                )
            else:
                yield f"{path}:{line}", dict(zip(header, row, strict=True))


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise CorpusError(f"{path}:{number}: expected an object, found {type(row).__name__}")
        yield f"{path}:{number}", row


def _text(path: Path) -> Iterator[Row]:
    return ((f"{path}:{number}", {"text": line}) for number, line in _lines(path))


def _whole(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        text = "".join(_decoded(path, file)).strip()
    if text:
        yield str(path), {"text": text}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a file, stripped, with their numbers."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(_decoded(path, file), 1):
            if stripped := line.strip():
                yield number, stripped


def _decoded(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """Pass lines on; turn bytes that are not UTF-8 into an error with the file's name."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):  # noqa: B007 - read in the except clause
            yield line
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 after line {number}: {error.reason}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    yield f"{path}:row {index}", row
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not a readable Parquet file: {error}") from error


SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
}
READERS = {
    "csv": _csv,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "text": _text,
    "whole": _whole,
}
