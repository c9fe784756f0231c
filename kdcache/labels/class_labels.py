"""Which class each label of a corpus names: docs/decisions/0021 tells in which order it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdcache.errors import CorpusError
from kdcache.labels.base import MAX_CLASSES, Known, Labels
from kdcache.labels.reader import LabelReader
from kdcache.labels.readings import (
    BY_NAME,
    READINGS,
    Classes,
    Label,
    Reading,
    listed,
    number,
)
from kdcache.tasks import IGNORE_INDEX


def read_classes(reader: LabelReader, given: Known) -> Labels:
    """A class id for each document, [N] int32: names come first, then numbers by value.

    Raises CorpusError, naming file and line, for a label that does not fit.
    """
    names = reader.names
    if len(names) > MAX_CLASSES:
        raise CorpusError(
            f"{reader.first_seen[names[MAX_CLASSES]]}: more than {MAX_CLASSES:,} distinct labels; "
            "is this the label column? Name it with --label-column, or pass an empty name for none"
        )
    reading = read_distinct(reader.distinct(), classes_of(given))
    table = np.full(len(names) + 1, IGNORE_INDEX, np.int32)
    for code, index in reading.ids.items():
        table[code] = index
    rows = table[np.asarray(reader.codes, np.int32)]
    return Labels("classes", list(reading.classes) or None, rows, reading.notes)


def classes_of(given: Known) -> Classes:
    """What is known of the outputs, as of classes."""
    return Classes(
        known=given.names or None,
        count=given.count,
        corpus=given.corpus,
        most=MAX_CLASSES,
        new=given.new,
    )


def read_distinct(labels: Sequence[Label], classes: Classes) -> Reading:
    """The first reading that fits every label; CorpusError for a label that fits none."""
    labels, notes = _labelled(labels, classes)
    if classes.corpus is not None:
        labels = [_as_the_corpus_says(label, classes.corpus) for label in labels]
    if not labels:
        return Reading(classes.known or (), {}, notes)
    reading = _read(labels, classes)
    if classes.count is not None and len(reading.classes) > classes.count:
        raise CorpusError(
            f"the corpus has {len(reading.classes)} classes; the teacher has {classes.count}"
        )
    return replace(reading, notes=(*notes, *reading.notes))


def _read(labels: Sequence[Label], classes: Classes) -> Reading:
    for reading in READINGS:
        found = reading(labels, classes)
        if found is not None:
            return found
    raise _stranger(labels, classes)


def _labelled(labels: Sequence[Label], classes: Classes) -> tuple[Sequence[Label], tuple[str, ...]]:
    """The labels without those that mean there is none, and how many documents have these."""
    marks: set[float | None] = {-1, IGNORE_INDEX}
    if classes.corpus is None:
        marks -= set(map(number, classes.known or ()))
    nothing = [label for label in labels if label.value in marks]
    left = [label for label in labels if label.value not in marks]
    if any(label.value == -1 for label in nothing) and not _marks_nothing(left, classes):
        raise _ambiguous(labels)
    return left, tuple(no_label(label.documents, label.name) for label in nothing)


def no_label(documents: int, name: str) -> str:
    """The word on documents whose label says that they have none."""
    return f"{documents:,} documents are labelled {name}, which is taken as no label"


def _marks_nothing(others: Sequence[Label], classes: Classes) -> bool:
    """Whether -1 beside these labels can only mean that there is none.

    Beside numbers it might be a class of its own, as in -1, 0, 1: unless they reach from the
    teacher's first class to its last.
    """
    if classes.corpus is not None or not any(label.value is not None for label in others):
        return True
    if any(reading(others, classes) is not None for reading in BY_NAME):
        return True
    ids = {label.value for label in others}
    return (classes.known or classes.count) is not None and ids >= {0, classes.limit - 1}


def _ambiguous(labels: Sequence[Label]) -> CorpusError:
    minus = next(label for label in labels if label.value == -1)
    others = listed([label.name for label in labels if label is not minus])
    return CorpusError(
        f"{minus.where}: label {minus.name}, beside {others}, is a class or means no label: number "
        "the classes from 0 and leave the label empty where there is none; for regression pass "
        "--label-type float"
    )


def _as_the_corpus_says(label: Label, names: tuple[str, ...]) -> Label:
    if label.value is None:  # written as its name
        return label
    if not label.value.is_integer() or not 0 <= label.value < len(names):
        raise CorpusError(
            f"{label.where}: label {label.name} is outside the {len(names)} classes that the "
            f"corpus names ({listed(names)})"
        )
    name = names[int(label.value)].strip()
    return label._replace(name=name, value=number(name))


def _stranger(labels: Sequence[Label], classes: Classes) -> CorpusError:
    """The error for a label that is none of the teacher's classes."""
    known = classes.known or ()
    folded = {name.casefold() for name in known}
    label = next(
        (x for x in labels if x.name not in known and x.name.casefold() not in folded), labels[0]
    )
    hint = "name another column with --label-column, or rename the labels"
    if classes.corpus is not None:
        names = listed(classes.corpus)
        hint = (
            f"the corpus calls its classes {names}: rename them as the teacher does, or the "
            "teacher's (id2label of its config.json) as the corpus does"
        )
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return CorpusError(
        f"{label.where}: label {label.name!r} is not one of the {len(known)} known classes "
        f"({shown}); {hint}"
    )
