"""Tables in text files: CSV, TSV, JSONL, and plain text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdcache.corpora.packed import FAILURES, is_damage, lines_left, open_bytes, open_text
from kdcache.corpora.tables import Row, Table, Wanted
from kdcache.errors import CorpusError


@contextmanager
def named(path: Path) -> Iterator[None]:
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
    except FAILURES as error:
        if is_damage(path, error):
            raise CorpusError(
                f"{path}:{lines_left(path)}: damaged, or not compressed as {path.suffix} says: "
                f"{error}; get the file anew"
            ) from error
        raise CorpusError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


CONTAINERS = {
    b"\x1f\x8b": "compressed with gzip: add .gz to its name",
    b"BZh": "compressed with bzip2: add .bz2 to its name",
    b"\xfd7zXZ": "compressed with xz: add .xz to its name",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: add .zst to its name",
    b"PK\x03\x04": "a zip archive or a workbook: unpack it, or save it as CSV",
    b"PAR1": "Parquet: give the file the suffix .parquet",
    b"\xff\xfe": "UTF-16: convert the file to UTF-8",
    b"\xfe\xff": "UTF-16: convert the file to UTF-8",
}
"""What a file is that begins with these bytes, and what to do about it."""


def _container(path: Path) -> str | None:
    with open_bytes(path) as file:
        start = file.read(8)
    return next((what for magic, what in CONTAINERS.items() if start.startswith(magic)), None)


def _undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8: decoders fail a buffer ahead of the rows."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def csv_table(path: Path) -> Table:
    """Open a CSV file: comma-separated, quoted where needed, a header in its first line."""
    return _delimited(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def tsv_table(path: Path) -> Table:
    """Open a tab-separated file with a header in its first line."""
    # Tab-separated corpora (GLUE's among them) carry bare quotation marks: nothing is quoted.
    return _delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _delimited(path: Path, **dialect: Any) -> Table:
    with open_text(path, newline="") as file:
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
    with named(path), open_text(path, newline="") as file:
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


def jsonl_table(path: Path) -> Table:
    """Open a file of one JSON object a line."""
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


def lines_table(path: Path) -> Table:
    """Open a text file whose lines are documents, blank ones left out."""

    def rows(wanted: Wanted) -> Iterator[Row]:
        return ((f"{path}:{number}", {"text": line}) for number, line in _lines(path))

    return Table(name=str(path), columns=("text",), rows=rows)


def document_table(path: Path) -> Table:
    """Open a text file that is one document."""

    def rows(wanted: Wanted) -> Iterator[Row]:
        with named(path), open_text(path) as file:
            text = file.read().strip()
        if text:
            yield str(path), {"text": text}

    return Table(name=str(path), columns=("text",), rows=rows)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a file, stripped, with their numbers."""
    with named(path), open_text(path) as file:
        for number, line in enumerate(file, 1):
            if stripped := line.strip():
                yield number, stripped
