"""Corpus files as streams of rows: CSV, TSV, JSONL, Parquet, plain text, saved datasets."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from kdcache.errors import CorpusError

Unit = Literal["line", "file"]
Row = tuple[str, Mapping[str, Any]]  # where it stands ("file:line"), its columns


def rows_of(source: Any, unit: Unit) -> Iterator[Row]:
    """Rows of a path, a folder, a glob, a list of those or a `datasets.Dataset`, in order.

    Raises CorpusError, naming file and line, for anything that cannot be read.
    """
    if not isinstance(source, (str, Path, list, tuple)):
        return _dataset_rows(source)
    if isinstance(source, (str, Path)) and _is_saved(Path(source)):
        return _dataset_rows(_load_dataset(Path(source)))
    return (row for path in _files(source) for row in _read(path, unit))


def name_of(source: Any) -> str:
    """What to call a corpus in an error."""
    if isinstance(source, (list, tuple)):
        return ", ".join(map(str, source)) or "an empty list"
    return str(source) if isinstance(source, (str, Path)) else type(source).__name__


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _load_dataset(folder: Path) -> Any:
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except Exception as error:  # whatever Arrow and JSON raise for a broken file
        raise CorpusError(f"{folder} is not a readable `datasets` dataset: {error}") from error


def _dataset_rows(dataset: Any) -> Iterator[Row]:
    if isinstance(dataset, dict):
        raise CorpusError(f"the dataset has splits {', '.join(dataset)}; name one of them")
    if not hasattr(dataset, "column_names"):
        raise CorpusError(f"a corpus is a path or a datasets.Dataset; got {name_of(dataset)}")
    return ((f"dataset row {index}", row) for index, row in enumerate(dataset))


def _files(source: Any) -> list[Path]:
    if isinstance(source, (list, tuple)):
        return [path for item in source for path in _files(item)]
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in READERS)
        if not found:
            raise CorpusError(f"{path} holds no corpus files ({', '.join(READERS)})")
        return found
    matches = sorted(Path(p) for p in glob.glob(str(source), recursive=True))
    if not matches:
        raise CorpusError(f"no such corpus: {source}")
    return [found for match in matches for found in _files(match)]


def _read(path: Path, unit: Unit) -> Iterator[Row]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise CorpusError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; "
            f"a corpus is one of {', '.join(READERS)}"
        )
    try:
        yield from _whole(path) if reader is _text and unit == "file" else reader(path)
    except UnicodeDecodeError as error:
        number = _undecodable(path)
        raise CorpusError(
            f"{path}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror or error}") from error


def _undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8: decoders fail a buffer ahead of the rows."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _csv(path: Path) -> Iterator[Row]:
    return _table(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> Iterator[Row]:
    # Tab-separated corpora (GLUE's among them) carry bare quotation marks: nothing is quoted.
    return _table(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _table(path: Path, **dialect: Any) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        numbered = _records(path, csv.reader(file, strict=True, **dialect))
        where, header = next(numbered, ("", []))
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice:
            raise CorpusError(f"{where}: two columns are called {twice[0]!r}; rename one")
        for where, row in numbered:
            if len(row) != len(header):
                raise CorpusError(
                    f"{where}: malformed: expected {len(header)} columns, found {len(row)}"
                )
            yield where, dict(zip(header, row, strict=True))


def _records(path: Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
    """Records that are not blank, with the lines they start on."""
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise CorpusError(f"{where}: malformed: {error}") from error
        if row is None:
            return
        if row:
            yield where, row


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}:{number}: malformed: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise CorpusError(
                f"{path}:{number}: malformed: expected an object, found {type(row).__name__}"
            )
        yield f"{path}:{number}", row


def _text(path: Path) -> Iterator[Row]:
    return ((f"{path}:{number}", {"text": line}) for number, line in _lines(path))


def _whole(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig").strip()
    if text:
        yield str(path), {"text": text}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a file, stripped, with their numbers."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if stripped := line.strip():
                yield number, stripped


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _numbered(path, file.iter_batches(batch_size=4096))
    except (pyarrow.ArrowException, OSError) as error:
        first = str(error).partition("\n")[0]
        raise CorpusError(f"{path}: malformed: not a readable Parquet file: {first}") from error


def _numbered(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    index = 0
    for batch in batches:
        for row in batch.to_pylist():
            yield f"{path}:row {index}", row
            index += 1


READERS = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".txt": _text,
    ".text": _text,
}
