"""Tables of Arrow columns: Parquet files, and data sets of `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdcache.corpora.tables import Row, Table, Wanted
from kdcache.errors import CorpusError


def saved_dataset(folder: Path) -> Any:
    """Load a folder that `save_to_disk` wrote; CorpusError if it cannot be read."""
    from datasets import load_from_disk

    try:
        return load_from_disk(str(folder))
    except Exception as error:  # whatever Arrow and JSON raise for a broken file
        raise CorpusError(f"{folder} is not a readable `datasets` dataset: {error}") from error


def dataset_table(dataset: Any) -> Table:
    """Open a `datasets.Dataset` or stream; CorpusError for a dataset of splits."""
    if isinstance(dataset, dict):
        raise CorpusError(f"the dataset has splits {', '.join(dataset)}; name one of them")
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
        class_names={
            c: tuple(one.names) for c, f in known.items() if hasattr(one := _single(f), "str2int")
        },
    )


def _single(feature: Any) -> Any:
    """The feature of a value of a column: of a list, that of what it holds."""
    return getattr(feature, "feature", feature)


_STRINGS = ("string", "large_string")
_ARRAYS = ("numpy", "torch", "tensorflow", "jax", "pandas", "polars", "arrow")


def _dataset_rows(dataset: Any, wanted: Wanted) -> Iterator[Row]:
    chosen = dataset if wanted is None else dataset.select_columns(list(wanted))
    index = 0
    for batch in chosen.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield f"dataset row {index}", dict(zip(batch, values, strict=True))
            index += 1


def parquet_table(path: Path) -> Table:
    """Open a Parquet file; CorpusError if it is none."""
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
            column: one["names"]
            for column, feature in note.get("info", {}).get("features", {}).items()
            if isinstance(feature, dict)
            and isinstance(one := feature.get("feature", feature), dict)
            and one.get("_type") == "ClassLabel"
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
