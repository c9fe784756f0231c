"""Corpus files as tables of rows: CSV, TSV, JSONL, Parquet, plain text, saved datasets."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdcache.corpus_files import files_of, kind_of
from kdcache.errors import CorpusError

Unit = Literal["line", "file"]
Row = tuple[str, Mapping[str, Any]]  # where it stands ("file:line"), its columns
Wanted = Sequence[str] | None  # columns to read; None: all of them


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file of a corpus, or a data set, opened so far that its columns are known.

    Attributes:
        name: to call it in an error.
        columns: its columns; None where every row names its own, as in JSON.
        rows: its rows with the columns asked for, or with more where that costs nothing.
        texts: columns that can hold text; None: any of them.
        class_names: of columns of class numbers that say which classes these are.
    """

    name: str
    columns: tuple[str, ...] | None
    rows: Callable[[Wanted], Iterator[Row]] = field(repr=False)
    texts: tuple[str, ...] | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def tables_of(source: Any, unit: Unit) -> list[Table]:
    """Open a path, a folder, a glob, a list of those or a `datasets.Dataset`.

    Raises CorpusError, naming file and line, for anything that cannot be read; so do the rows.
    """
    if not isinstance(source, (str, Path, list, tuple)):
        return [_dataset(source)]
    if isinstance(source, (str, Path)) and _is_saved(Path(source)):
        return [_dataset(_load_dataset(Path(source)))]
    return [_open(path, unit) for path in files_of(source)]


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


def _dataset(dataset: Any) -> Table:
    if isinstance(dataset, dict):
        raise CorpusError(f"the dataset has splits {', '.join(dataset)}; name one of them")
    if not hasattr(dataset, "column_names"):
        raise CorpusError(f"a corpus is a path or a datasets.Dataset; got {name_of(dataset)}")
    if (getattr(dataset, "format", None) or {}).get("type") in _ARRAYS:
        dataset = dataset.with_format(None)
    features = dataset.features  # None if a stream does not know them
    known = dict(features or {})
    return Table(
        name="the dataset",
        columns=tuple(dataset.column_names) if dataset.column_names else None,
        rows=lambda wanted: _dataset_rows(dataset, wanted),
        texts=tuple(c for c, f in known.items() if getattr(f, "dtype", "") in _STRINGS)
        if features
        else None,
        class_names={c: tuple(f.names) for c, f in known.items() if hasattr(f, "str2int")},
    )


_STRINGS = ("string", "large_string")
_ARRAYS = ("numpy", "torch", "tensorflow", "jax", "pandas", "polars", "arrow")


def _dataset_rows(dataset: Any, wanted: Wanted) -> Iterator[Row]:
    chosen = dataset if wanted is None else dataset.select_columns(list(wanted))
    index = 0
    for batch in chosen.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield f"dataset row {index}", dict(zip(batch, values, strict=True))
            index += 1


def _open(path: Path, unit: Unit) -> Table:
    kind = kind_of(path)
    with _named(path):
        return OPENERS["file" if kind == "text" and unit == "file" else kind](path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file, and the line where that is known, in what goes wrong inside."""
    try:
        yield
    except UnicodeDecodeError as error:
        number, what = _undecodable(path), _container(path)
        if what is not None:
            raise CorpusError(f"{path}:{number}: not UTF-8 but {what}") from error
        raise CorpusError(
            f"{path}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror or error}") from error


CONTAINERS = {
    b"\x1f\x8b": "compressed with gzip: unpack the file",
    b"BZh": "compressed with bzip2: unpack the file",
    b"\xfd7zXZ": "compressed with xz: unpack the file",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack the file",
    b"PK\x03\x04": "a zip archive or a workbook: unpack it, or save it as CSV",
    b"PAR1": "Parquet: give the file the suffix .parquet",
    b"\xff\xfe": "UTF-16: convert the file to UTF-8",
    b"\xfe\xff": "UTF-16: convert the file to UTF-8",
}
"""What a file is that begins with these bytes, and what to do about it."""


def _container(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(8)
    return next((what for magic, what in CONTAINERS.items() if start.startswith(magic)), None)


def _undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8: decoders fail a buffer ahead of the rows."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _csv(path: Path) -> Table:
    return _delimited(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _tsv(path: Path) -> Table:
    # Tab-separated corpora (GLUE's among them) carry bare quotation marks: nothing is quoted.
    return _delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _delimited(path: Path, **dialect: Any) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        where, header = next(_records(path, file, dialect), ("", []))
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise CorpusError(f"{where}: two columns are called {twice[0]!r}; rename one")
    _require_delimiter(where, header, dialect["delimiter"])
    return Table(
        name=str(path),
        columns=tuple(header),
        rows=lambda wanted: _delimited_rows(path, wanted, dialect),
    )


DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def _require_delimiter(where: str, header: Sequence[str], delimiter: str) -> None:
    """Raise if the one column there is looks like several, separated by another character."""
    inside = [mark for mark in DELIMITERS if len(header) == 1 and mark in header[0]]
    if inside and delimiter not in inside:
        raise CorpusError(
            f"{where}: the only column is called {header[0]!r}: such a file separates columns by "
            f"{DELIMITERS[delimiter]}, this one seems to by {DELIMITERS[inside[0]]}: save it with "
            f"{DELIMITERS[delimiter]}, or rename the column"
        )


def _delimited_rows(path: Path, wanted: Wanted, dialect: Mapping[str, Any]) -> Iterator[Row]:
    with _named(path), path.open(encoding="utf-8-sig", newline="") as file:
        numbered = _records(path, file, dialect)
        _, header = next(numbered, ("", []))
        places = [(name, i) for i, name in enumerate(header) if wanted is None or name in wanted]
        for where, row in numbered:
            if len(row) != len(header):
                raise CorpusError(
                    f"{where}: malformed: expected {len(header)} columns, found {len(row)}"
                )
            yield where, {name: row[i] for name, i in places}


def _records(
    path: Path, file: Iterable[str], dialect: Mapping[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    """Records that are not blank, with the lines they start on."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(file, strict=True, **dialect)
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


def _jsonl(path: Path) -> Table:
    return Table(name=str(path), columns=None, rows=lambda wanted: _objects(path))


def _objects(path: Path) -> Iterator[Row]:
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


def _text(path: Path) -> Table:
    def rows(wanted: Wanted) -> Iterator[Row]:
        return ((f"{path}:{number}", {"text": line}) for number, line in _lines(path))

    return Table(name=str(path), columns=("text",), rows=rows)


def _whole(path: Path) -> Table:
    def rows(wanted: Wanted) -> Iterator[Row]:
        with _named(path):
            text = path.read_text(encoding="utf-8-sig").strip()
        if text:
            yield str(path), {"text": text}

    return Table(name=str(path), columns=("text",), rows=rows)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a file, stripped, with their numbers."""
    with _named(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if stripped := line.strip():
                yield number, stripped


def _parquet(path: Path) -> Table:
    import pyarrow.parquet

    with _parquet_errors(path), pyarrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
    return Table(
        name=str(path),
        columns=tuple(schema.names),
        rows=lambda wanted: _parquet_rows(path, wanted),
        texts=tuple(f.name for f in schema if str(f.type).startswith(_TEXT_TYPES)),
        class_names=_class_names(path, schema),
    )


_TEXT_TYPES = ("string", "large_string", "dictionary<values=string", "dictionary<values=large_str")


def _class_names(path: Path, schema: Any) -> dict[str, tuple[str, ...]]:
    """Names of classes in the note that `datasets` leaves in a Parquet schema."""
    try:
        note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        labels = {
            column: feature["names"]
            for column, feature in note.get("info", {}).get("features", {}).items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
        return {
            column: tuple(map(str, names))
            for column, names in labels.items()
            if isinstance(names, list) and "int" in str(schema.field(column).type)
        }
    except (ValueError, LookupError, AttributeError) as error:
        raise CorpusError(
            f"{path}: malformed: the note of `datasets` in its schema makes no sense: {error!r}"
        ) from error


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        first = str(error).partition("\n")[0]
        raise CorpusError(f"{path}: malformed: not a readable Parquet file: {first}") from error


def _parquet_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    import pyarrow.parquet

    index = 0
    columns = None if wanted is None else list(wanted)
    with _parquet_errors(path), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=4096, columns=columns):
            names = batch.schema.names
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield f"{path}:row {index}", dict(zip(names, values, strict=True))
                index += 1


OPENERS: Mapping[str, Callable[[Path], Table]] = {
    "csv": _csv,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "text": _text,
    "file": _whole,
}
