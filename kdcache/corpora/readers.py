"""What a corpus can be, as tables of rows: files of every kind, folders, frames, data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from kdcache.corpora.arrow_tables import dataset_table, parquet_table, saved_dataset
from kdcache.corpora.files import files_of, kind_of
from kdcache.corpora.frames import frame_table
from kdcache.corpora.json_arrays import array_table
from kdcache.corpora.tables import Table
from kdcache.corpora.text_tables import (
    csv_table,
    document_table,
    jsonl_table,
    lines_table,
    named,
    tsv_table,
)
from kdcache.corpora.words import conll_table
from kdcache.errors import CorpusError

Unit = Literal["line", "file"]
OF_TEXT = {"line": "text", "file": "file", "words": "conll"}
"""What plain text is, by the unit of a document."""


def tables_of(source: Any, unit: str) -> list[Table]:
    """Open a path, a folder, a glob, a list of those, or an object of a kind in `OBJECTS`.

    Raises CorpusError, naming file and line, for anything that cannot be read; so do the rows.
    """
    if not isinstance(source, (str, Path, list, tuple)):
        return [_table_of(source)]
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


def _table_of(source: Any) -> Table:
    """The table of an object, found by its class's name: nothing is imported to tell."""
    for kind in type(source).__mro__:
        name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
        if name in OBJECTS:
            return OBJECTS[name](source)
    raise CorpusError(
        f"a corpus is a path, a pandas.DataFrame, a datasets.Dataset, or files in a list; got "
        f"{type(source).__name__}"
    )


def _open(path: Path, unit: str) -> Table:
    kind = kind_of(path)
    with named(path):
        return OPENERS[OF_TEXT[unit] if kind == "text" else kind](path)


OPENERS: Mapping[str, Callable[[Path], Table]] = {
    "csv": csv_table,
    "tsv": tsv_table,
    "jsonl": jsonl_table,
    "json": array_table,
    "parquet": parquet_table,
    "text": lines_table,
    "file": document_table,
    "conll": conll_table,
}
"""What opens a file of a kind; those of text are read compressed, too."""

OBJECTS: Mapping[str, Callable[[Any], Table]] = {
    "pandas.DataFrame": frame_table,
    "datasets.Dataset": dataset_table,
    "datasets.IterableDataset": dataset_table,
    "datasets.DatasetDict": dataset_table,
    "datasets.IterableDatasetDict": dataset_table,
}
"""What opens an object of Python, by package and name of its class."""
