"""Hard labels of a corpus: class names, class numbers or regression targets."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Number
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from kdcache.corpora.label_readings import (
    BY_NAME,
    READINGS,
    Classes,
    Label,
    Reading,
    listed,
    number,
)
from kdcache.errors import CorpusError, one_of
from kdcache.tasks import IGNORE_INDEX

LabelType = Literal["auto", "class", "float"]
UNLABELLED = {"", "nan"}
LARGEST = float(np.finfo(np.float32).max)  # regression values are stored as float32
MAX_CLASSES = 65_536  # far beyond any classifier: more is a column of ids or of text


@dataclass
class LabelReader:
    """Collects raw labels in document order, remembering where each was first seen."""

    codes: array[int] = field(default_factory=lambda: array("i"))
    first_seen: dict[str, str] = field(default_factory=dict)
    truths: set[str] = field(default_factory=set)
    _code: dict[str, int] = field(default_factory=dict)

    def add(self, label: Any, where: str) -> None:
        """Note the label of the next document; None, '' and nan mean there is none.

        Raises CorpusError if it is neither text nor a number.
        """
        if label is not None and not isinstance(label, (str, bool, np.bool_, Number)):
            kind = type(label).__name__
            raise CorpusError(
                f"{where}: a label is a text or a number; got {kind}; name another column with "
                "--label-column, or pass an empty name for none"
            )
        name = str(label).strip()
        if label is None or name.lower() in UNLABELLED:
            self.codes.append(-1)
            return
        if name not in self._code:
            self._code[name] = len(self._code)
            self.first_seen[name] = where
            if isinstance(label, (bool, np.bool_)):
                self.truths.add(name)
        self.codes.append(self._code[name])

    @property
    def names(self) -> list[str]:
        """Distinct labels, in the order they were first seen."""
        return list(self._code)

    def value(self, name: str) -> float | None:
        """The number a label says, 1 for true and 0 for false; None if it says none."""
        return float(name == "True") if name in self.truths else number(name)

    def distinct(self) -> list[Label]:
        """Distinct labels with the documents that have them, in the order of their codes."""
        counts = np.bincount(np.asarray(self.codes, np.int64) + 1, minlength=len(self._code) + 1)
        return [
            Label(code, name, self.first_seen[name], int(documents), self.value(name))
            for (name, code), documents in zip(self._code.items(), counts[1:], strict=True)
        ]


@dataclass(frozen=True)
class Labels:
    """Labels of every document: class ids with their names, or regression values.

    `notes` say what was guessed and what was taken as no label, one line each.
    """

    problem: Literal["classes", "regression"]
    classes: list[str] | None
    ids: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]
    notes: tuple[str, ...] = ()


def resolve(
    reader: LabelReader,
    *,
    label_type: LabelType = "auto",
    known: Sequence[str] | None = None,
    count: int | None = None,
    corpus_names: Sequence[str] | None = None,
    new: bool = False,
) -> Labels:
    """Decide what the labels are.

    `known` are the teacher's class names (None: unknown), `count` its number of classes (1:
    regression), `corpus_names` what the corpus itself calls its numbers, as a `datasets.ClassLabel`
    does. `new`: there is no teacher yet, and its classes will be those found here. Names come
    first, then numbers by value: docs/decisions/0021.

    Raises CorpusError, naming file and line, for a label that does not fit.
    """
    one_of("label type", label_type, get_args(LabelType))
    names = reader.names
    regression = label_type == "float" or (
        label_type == "auto" and _regression(reader, known, count)
    )
    if not regression and len(names) > MAX_CLASSES:
        raise CorpusError(
            f"{reader.first_seen[names[MAX_CLASSES]]}: more than {MAX_CLASSES:,} distinct labels; "
            "is this the label column? Name it with --label-column, or pass an empty name for none"
        )
    if regression:
        return _values(reader, corpus_names, guessed=label_type == "auto" and count is None)
    classes = Classes(
        known=tuple(known) if known else None,
        count=count,
        corpus=tuple(corpus_names) if corpus_names is not None else None,
        most=MAX_CLASSES,
        new=new,
    )
    return _classes(reader, _read_classes(reader.distinct(), classes))


def _regression(reader: LabelReader, known: Sequence[str] | None, count: int | None) -> bool:
    if count is not None or known:
        return count == 1
    names = reader.names
    return (
        bool(names)
        and all(reader.value(name) is not None for name in names)
        and not all(name in reader.truths or _is_int(name) for name in names)
    )


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _values(reader: LabelReader, corpus_names: Sequence[str] | None, *, guessed: bool) -> Labels:
    """Every number is a value, -1 like any other, and -100 where a label lies below it."""
    values = [_target(reader, name, corpus_names) for name in reader.names]
    table = np.array([*values, math.nan], np.float32)
    codes = np.asarray(reader.codes, np.int32)
    notes = []
    if values and min(values) == IGNORE_INDEX:
        unlabelled = np.flatnonzero(table == IGNORE_INDEX)
        table[unlabelled] = math.nan
        documents = int(np.isin(codes, unlabelled).sum())
        notes.append(_no_label(documents, reader.names[unlabelled[0]]))
    if guessed:
        notes.append(
            "labels are numbers with a point: taken as regression values "
            "(--label-type class makes whole ones classes)"
        )
    ignored = np.full(len(codes), IGNORE_INDEX, np.int32)
    return Labels("regression", None, ignored, table[codes], tuple(notes))


def _target(reader: LabelReader, name: str, corpus_names: Sequence[str] | None) -> float:
    """The value of a label; of a class that the corpus names, what its name says."""
    value, label = reader.value(name), name
    if corpus_names is not None and value is not None:
        if value < 0:
            return float(IGNORE_INDEX)
        label = corpus_names[int(value)] if value < len(corpus_names) else label
        value = number(label)
    if value is None or abs(value) > LARGEST:
        what = "is not a number" if value is None else "is beyond what float32 holds"
        raise CorpusError(
            f"{reader.first_seen[name]}: label {label!r} {what}; correct it, or name another "
            "column with --label-column"
        )
    return value


def _classes(reader: LabelReader, reading: Reading) -> Labels:
    table = np.full(len(reader.names) + 1, IGNORE_INDEX, np.int32)
    for code, index in reading.ids.items():
        table[code] = index
    codes = np.asarray(reader.codes, np.int32)
    nothing = np.full(len(codes), np.nan, np.float32)
    classes = list(reading.classes) or None
    return Labels("classes", classes, table[codes], nothing, reading.notes)


def _read_classes(labels: Sequence[Label], classes: Classes) -> Reading:
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
    return left, tuple(_no_label(label.documents, label.name) for label in nothing)


def _no_label(documents: int, name: str) -> str:
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
