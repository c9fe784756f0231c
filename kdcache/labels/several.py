"""Labels of which a document has several: sets of classes, and vectors of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdcache.errors import CorpusError
from kdcache.labels.base import Array, Known, Labels, no_label_of, output_names
from kdcache.labels.class_labels import classes_of, read_distinct
from kdcache.labels.reader import COLUMNS, HINT, LARGEST, LISTS, LabelReader
from kdcache.labels.readings import listed
from kdcache.tasks import IGNORE_INDEX


def read_sets(reader: LabelReader, given: Known) -> Labels:
    """Which classes each document has, [N, C] int8 of 0 and 1.

    Names are read as those of single classes are, one after the other. An empty list is a document
    without a class, a missing one a document without a label. Raises CorpusError, naming file and
    line, for a class that does not fit.
    """
    if reader.form == COLUMNS:
        return _flags(reader, given)
    if reader.repeated or reader.fraction:
        what = "the same class twice" if reader.repeated else "a number with a fraction"
        raise CorpusError(
            f"{reader.repeated or reader.fraction}: a list of classes holds {what}; it names each "
            "class that a document has once: for a 0 or 1 of every class name a column for each "
            "(--label-column, repeated), for lists of values pass --label-type vector"
        )
    reading = read_distinct(reader.distinct(), classes_of(given))
    if reader.form == LISTS:
        _require_classes(reader, reading.ids)
    names = _names(reading.classes, given, "classes")
    rows, notes = _rows(reader, reading.ids, len(names)), list(reading.notes)
    if reader.form and reader.form != LISTS:
        notes.append("labels are single classes: taken as the only one of each document")
    return Labels("multi-label", names, rows, tuple(notes))


def has_values(reader: LabelReader) -> bool:
    """Whether labels of which documents have several can be no classes: not all are whole numbers,
    or, of several columns, 0 and 1.
    """
    values = [reader.value(name) for name in reader.names]
    if reader.form == COLUMNS:
        return bool(reader.fraction) or not all(value in (0, 1) for value in values)
    return bool(reader.fraction) and all(value is not None for value in values)


def _rows(reader: LabelReader, ids: Any, classes: int) -> Array:
    table = np.full(len(reader.names) + 1, -1, np.int64)
    for code, index in ids.items():
        table[code] = index
    counts = np.asarray(reader.counts, np.int64)
    rows = np.zeros((len(counts), classes), np.int8)
    documents = np.repeat(np.arange(len(counts)), np.maximum(counts, 0))
    found = table[np.asarray(reader.items, np.int64)]
    rows[documents, found] = found >= 0
    rows[documents[found < 0]] = IGNORE_INDEX  # a single label that says there is none
    rows[counts < 0] = IGNORE_INDEX
    return rows


def _require_classes(reader: LabelReader, ids: Any) -> None:
    """Raise CorpusError for what means no label where it stands alone."""
    for label in reader.distinct():
        if label.code not in ids:
            raise CorpusError(
                f"{label.where}: a list of classes holds {label.name}, which is no class: write an "
                "empty list for a document without a class, and null for one without a label"
            )


def _flags(reader: LabelReader, given: Known) -> Labels:
    """A column for every class, of 0 and 1."""
    values = [reader.value(name) for name in reader.names]
    for name, value in zip(reader.names, values, strict=True):
        if value not in (0, 1):
            raise CorpusError(
                f"{reader.first_seen[name]}: {name!r} in a column of a class is neither 0 nor 1; "
                "correct it, or pass --label-type vector for values"
            )
    if reader.fraction:
        raise CorpusError(
            f"{reader.fraction}: a column of a class holds a number with a fraction; a class is "
            "there (1) or not (0): pass --label-type vector for values"
        )
    names, order, notes = _ordered(given)
    return Labels("multi-label", names, _filled(reader, len(names), np.int8)[:, order], notes)


def read_vectors(reader: LabelReader, given: Known) -> Labels:
    """The values of each document, [N, C] float32, as many for each.

    Raises CorpusError, naming file and line, for lists of another length and what is no number.
    """
    for name in reader.names:
        value = reader.value(name)
        if value is None or abs(value) > LARGEST:
            what = "is not a number" if value is None else "is beyond what float32 holds"
            raise CorpusError(
                f"{reader.first_seen[name]}: label {name!r} {what}; correct it; {HINT}"
            )
    if reader.form == COLUMNS:
        names, order, notes = _ordered(given)
        return Labels("vectors", names, _filled(reader, len(names), np.float32)[:, order], notes)
    if reader.form and reader.form != LISTS:
        raise CorpusError(
            f"{reader.since}: a label is a single value, where a list of "
            f"{given.count or 'several'} is wanted; {HINT}"
        )
    size = _length(reader, given)
    names = _names(given.names or [str(i) for i in range(size)], given, "values")
    rows = _filled(reader, size, np.float32) if reader.form else _none(reader, len(names))
    return Labels("vectors", names, rows)


def _length(reader: LabelReader, given: Known) -> int:
    lengths = list(reader.lengths.items())
    if len(lengths) > 1:
        (one, first), (other, where) = lengths[:2]
        raise CorpusError(
            f"{where}: a list of {other} values; that of {first} has {one}: give every document "
            "as many, or null where it has no label"
        )
    size = lengths[0][0] if lengths else 0
    if lengths and (size == 0 or given.count not in (None, size)):
        wanted = f"the teacher gives {given.count}" if given.count else "a vector has one or more"
        raise CorpusError(f"{lengths[0][1]}: a list of {size} values; {wanted}: correct it; {HINT}")
    return size


def _none(reader: LabelReader, size: int) -> Array:
    return np.full((len(reader.counts), size), np.nan, np.float32)


def _filled(reader: LabelReader, size: int, dtype: Any) -> Array:
    """The numbers of every document, `size` each: [N, size] of a dtype."""
    values = np.array([*map(reader.value, reader.names), np.nan], np.float64)
    numbers = np.asarray(reader.numbers, np.float64)
    found = np.where(np.isnan(numbers), values[np.asarray(reader.items, np.int64)], numbers)
    there = np.asarray(reader.counts) >= 0
    rows = np.full((len(there), size), no_label_of(dtype), dtype)
    rows[there] = found.reshape(-1, size)
    return rows


def _names(found: Sequence[str], given: Known, what: str) -> list[str]:
    """A name for every output; CorpusError where nothing tells how many there are."""
    names = list(given.names or found)
    outputs = given.count or len(names)
    if not outputs:
        raise CorpusError(
            f"the corpus has no labels, so nothing tells the {what}: name the teacher's folder "
            "(--tokenizer or --teacher), or the column of the labels (--label-column)"
        )
    return output_names(names, outputs)


def _ordered(given: Known) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The teacher's names in their order, and the column of each; those of the columns where it has
    none.
    """
    columns, size = list(given.columns), given.count or len(given.columns)
    if given.names is None:
        if len(columns) != size:
            raise CorpusError(
                f"{len(columns)} label columns ({listed(columns)}); the teacher has {size} "
                "outputs: name a column for each, in their order (--label-column)"
            )
        note = f"the teacher's outputs have no names: they are taken to be {', '.join(columns)}"
        return columns, list(range(size)), (note,) if given.count else ()
    folded = {column.casefold(): index for index, column in enumerate(columns)}
    wanted = [name.casefold() for name in given.names]
    if len(folded) < len(columns) or len(set(wanted)) < size or set(wanted) != set(folded):
        raise CorpusError(
            f"the label columns are {listed(columns)}, and the teacher's outputs "
            f"{listed(given.names)}: name a column for each (--label-column), called as it is"
        )
    return list(given.names), [folded[name] for name in wanted], ()
