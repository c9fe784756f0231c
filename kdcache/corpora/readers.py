"""Corpus files as tables of rows: CSV, TSV, JSONL, Parquet, plain text, saved datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from kdcache.corpora.arrow_tables import dataset_table, parquet_table, saved_dataset
from kdcache.corpora.files import files_of, kind_of
from kdcache.corpora.tables import Table
from kdcache.corpora.text_tables import (
    csv_table,
    document_table,
    jsonl_table,
    lines_table,
    named,
    tsv_table,
)

Unit = Literal["line", "file"]


def tables_of(source: Any, unit: Unit) -> list[Table]:
    """Open a path, a folder, a glob, a list of those or a `datasets.Dataset`.

    Raises CorpusError, naming file and line, for anything that cannot be read; so do the rows.
    """
    if not isinstance(source, (str, Path, list, tuple)):
        return [dataset_table(source)]
    if isinstance(source, (str, Path)) and _is_saved(Path(source)):
        return [dataset_table(saved_dataset(Path(source)))]
    return [_open(path, unit) for path in files_of(source)]


def name_of(source: Any) -> str:
    """What to call a corpus in an error."""
    if isinstance(source, (list, tuple)):
        return ", ".join(map(str, source)) or "an empty list"
    return str(source) if isinstance(source, (str, Path)) else type(source).__name__


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _open(path: Path, unit: Unit) -> Table:
    kind = kind_of(path)
    with named(path):
        return OPENERS["file" if kind == "text" and unit == "file" else kind](path)


OPENERS: Mapping[str, Callable[[Path], Table]] = {
    "csv": csv_table,
    "tsv": tsv_table,
    "jsonl": jsonl_table,
    "parquet": parquet_table,
    "text": lines_table,
    "file": document_table,
}
