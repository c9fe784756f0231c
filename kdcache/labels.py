"""Hard labels of a corpus: class names, integer classes or regression targets."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from kdcache.errors import CorpusError, one_of
from kdcache.tasks import IGNORE_INDEX

LabelType = Literal["auto", "class", "float"]
UNLABELLED = {"", "-1", "-100", "nan"}
MAX_CLASSES = 65_536  # far beyond any classifier: more is a column of ids or of text


@dataclass
class LabelReader:
    """Collects raw labels in document order, remembering where each was first seen."""

    codes: array[int] = field(default_factory=lambda: array("i"))
    first_seen: dict[str, str] = field(default_factory=dict)
    _code: dict[str, int] = field(default_factory=dict)

    def add(self, label: Any, where: str) -> None:
        """Note the label of the next document; None, '', -1 and -100 mean there is none.

        Raises CorpusError if it is neither text nor a number.
        """
        if label is not None and not isinstance(label, (str, bool, Number)):
            kind = type(label).__name__
            raise CorpusError(f"{where}: a label is a text or a number; got {kind}")
        name = str(int(label)) if isinstance(label, bool) else str(label).strip()
        if label is None or name in UNLABELLED:
            self.codes.append(-1)
            return
        if name not in self._code:
            self._code[name] = len(self._code)
            self.first_seen[name] = where
        self.codes.append(self._code[name])

    @property
    def names(self) -> list[str]:
        """Distinct labels, in the order they were first seen."""
        return list(self._code)


@dataclass(frozen=True)
class Labels:
    """Labels of every document: class ids with their names, or regression values."""

    problem: Literal["classes", "regression"]
    classes: list[str] | None
    ids: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]


def resolve(
    reader: LabelReader,
    *,
    label_type: LabelType = "auto",
    known: Sequence[str] | None = None,
    count: int | None = None,
) -> Labels:
    """Decide what the labels are.

    `known` are the teacher's class names (None: unknown), `count` its number of classes (1:
    regression). Integers are class ids; numbers with a point are regression values; other texts
    are class names, numbered as the teacher does or, where it has no names, alphabetically.

    Raises CorpusError, naming file and line, for a label that does not fit.
    """
    one_of("label type", label_type, get_args(LabelType))
    names = reader.names
    if label_type == "float" or (label_type == "auto" and _regression(names, count)):
        return _values(reader, names)
    if len(names) > MAX_CLASSES:
        raise CorpusError(
            f"{reader.first_seen[names[MAX_CLASSES]]}: more than {MAX_CLASSES:,} distinct labels; "
            "is this the label column? Name it with --label-column, or pass an empty name for none"
        )
    if names and all(map(_is_float, names)) and not set(names) <= set(known or ()):
        return _integers(reader, names, known, count)
    return _named(reader, names, known, count)


def _regression(names: list[str], count: int | None) -> bool:
    if count is not None:
        return count == 1
    return bool(names) and all(map(_is_float, names)) and not all(map(_is_int, names))


def _values(reader: LabelReader, names: list[str]) -> Labels:
    for name in names:
        if not _is_float(name):
            raise CorpusError(f"{reader.first_seen[name]}: label {name!r} is not a number")
    table = np.array([*map(float, names), math.nan], np.float32)
    codes = np.asarray(reader.codes, np.int32)
    ignored = np.full(len(codes), IGNORE_INDEX, np.int32)
    return Labels("regression", None, ignored, table[codes])


def _integers(
    reader: LabelReader, names: list[str], known: Sequence[str] | None, count: int | None
) -> Labels:
    limit = len(known) if known else count or MAX_CLASSES
    for name in names:
        if float(name).is_integer() and 0 <= float(name) < limit:
            continue
        if not known and count is None:
            raise CorpusError(
                f"{reader.first_seen[name]}: label {name} is no class: whole numbers from 0 to "
                f"{limit - 1:,} name classes; for regression pass --label-type float"
            )
        raise CorpusError(
            f"{reader.first_seen[name]}: label {name} is outside the teacher's {limit} classes "
            f"(0 to {limit - 1})"
        )
    # Not int(name): tables with gaps turn whole numbers into floats, such as "2.0".
    ids = [int(float(name)) for name in names]
    classes = list(known) if known else [str(i) for i in range(count or max(ids) + 1)]
    return _classes(reader, classes, ids)


def _named(
    reader: LabelReader, names: list[str], known: Sequence[str] | None, count: int | None
) -> Labels:
    classes = list(known) if known else sorted(names)
    ids = {name: index for index, name in enumerate(classes)}
    for name in names:
        if name not in ids:
            shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            raise CorpusError(
                f"{reader.first_seen[name]}: label {name!r} is not one of the "
                f"{len(classes)} known classes ({shown})"
            )
    if count is not None and len(classes) > count:
        raise CorpusError(f"the corpus has {len(classes)} classes; the teacher has {count}")
    return _classes(reader, classes, [ids[name] for name in names])


def _classes(reader: LabelReader, classes: list[str], ids: list[int]) -> Labels:
    table = np.array([*ids, IGNORE_INDEX], np.int32)
    codes = np.asarray(reader.codes, np.int32)
    return Labels("classes", classes or None, table[codes], np.full(len(codes), np.nan, np.float32))


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
