"""Raw labels of a corpus, as they are read."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import numpy as np

from kdcache.errors import CorpusError
from kdcache.labels.readings import Label, number

UNLABELLED = {"", "nan"}
LARGEST = float(np.finfo(np.float32).max)  # values are stored as float32
SINGLE, LISTS, COLUMNS = "single labels", "lists", "several label columns"
HINT = "name another column with --label-column, or pass an empty name for none"


class Cells(tuple[Any, ...]):
    """The labels of one document in several columns, in the order in which these are named."""

    __slots__ = ()


@dataclass
class LabelReader:
    """Collects raw labels in document order, remembering where each was first seen.

    Attributes:
        counts: how many labels each document has; -1 where it has none, 0 for an empty list.
        items: the codes of all of them, document after document; -1 for a number with a fraction.
        numbers: such numbers, where documents have several labels; NaN beside a code.
        form: SINGLE, LISTS or COLUMNS, as the first label is; "": there is none yet.
        since: where the first label stands.
        lengths: where a document of so many labels was first seen.
        fraction: where a number with a fraction was first seen in a list; "" if there is none.
        repeated: where a list that holds a label twice was first seen; "" if there is none.
    """

    counts: array[int] = field(default_factory=lambda: array("i"))
    items: array[int] = field(default_factory=lambda: array("i"))
    numbers: array[float] = field(default_factory=lambda: array("d"))
    form: str = ""
    since: str = ""
    lengths: dict[int, str] = field(default_factory=dict)
    fraction: str = ""
    repeated: str = ""
    first_seen: dict[str, str] = field(default_factory=dict)
    truths: set[str] = field(default_factory=set)
    _code: dict[str, int] = field(default_factory=dict)

    def add(self, label: Any, where: str) -> None:
        """Note the label of the next document; None, '' and nan mean there is none.

        Raises CorpusError if it is neither text nor a number, nor a list of these, or is of another
        form than those before.
        """
        if isinstance(label, Cells):
            self._add_cells(label, where)
        elif isinstance(label, (list, tuple, np.ndarray)):
            self._add_several(LISTS, list(label), where)
        elif _nothing(label):
            self.counts.append(-1)
        else:
            self._require_form(SINGLE, where)
            self.items.append(self._coded(label, where))
            self.counts.append(1)

    def _add_cells(self, cells: Cells, where: str) -> None:
        empty = sum(map(_nothing, cells))
        if empty == len(cells):
            self.counts.append(-1)
            return
        if empty:
            raise CorpusError(
                f"{where}: {empty} of the {len(cells)} label columns are empty: fill them (0 where "
                "a class is not there), or leave all of them empty for a document without a label"
            )
        self._add_several(COLUMNS, cells, where)

    def _add_several(self, form: str, labels: Iterable[Any], where: str) -> None:
        self._require_form(form, where)
        codes = [self._noted(label, where) for label in labels]
        self.items.extend(codes)
        self.counts.append(len(codes))
        self.lengths.setdefault(len(codes), where)
        if not self.repeated and len(set(codes)) < len(codes):
            self.repeated = where

    def _require_form(self, form: str, where: str) -> None:
        if not self.form:
            self.form, self.since = form, where
        elif form != self.form:
            raise CorpusError(
                f"{where}: the label is one of {form}; that of {self.since} is one of {self.form}: "
                "give all documents lists, or all of them a single label"
            )

    def _noted(self, label: Any, where: str) -> int:
        """The code of one of several labels; -1 for a number that can be no class."""
        if _nothing(label):
            raise CorpusError(
                f"{where}: a list of labels holds {label!r}: leave it out, or write null for the "
                "whole list where a document has no label"
            )
        if isinstance(label, (float, np.floating)) and not float(label).is_integer():
            if not abs(float(label)) <= LARGEST:
                raise CorpusError(
                    f"{where}: label {label} is beyond what float32 holds; correct it"
                )
            self.fraction = self.fraction or where
            self.numbers.append(float(label))
            return -1
        self.numbers.append(np.nan)
        return self._coded(label, where)

    def _coded(self, label: Any, where: str) -> int:
        if not isinstance(label, (str, bool, np.bool_, Number)):
            kind = type(label).__name__
            raise CorpusError(
                f"{where}: a label is a text or a number, or a list of those; got {kind}; {HINT}"
            )
        name = str(label).strip()
        if name not in self._code:
            self._code[name] = len(self._code)
            self.first_seen[name] = where
            if isinstance(label, (bool, np.bool_)):
                self.truths.add(name)
        return self._code[name]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def several(self) -> bool:
        """Whether documents have lists of labels, or several columns of them."""
        return self.form in (LISTS, COLUMNS)

    @property
    def codes(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Of single labels the code of each document's, -1 where it has none: [N]."""
        codes = np.full(len(self.counts), -1, np.int32)
        codes[np.asarray(self.counts) > 0] = np.asarray(self.items, np.int32)
        return codes

    @property
    def names(self) -> list[str]:
        """Distinct labels, in the order they were first seen."""
        return list(self._code)

    def value(self, name: str) -> float | None:
        """The number a label says, 1 for true and 0 for false; None if it says none."""
        return float(name == "True") if name in self.truths else number(name)

    def distinct(self) -> list[Label]:
        """Distinct labels with the documents that have them, in the order of their codes."""
        counts = np.bincount(np.asarray(self.items, np.int64) + 1, minlength=len(self._code) + 1)
        return [
            Label(code, name, self.first_seen[name], int(documents), self.value(name))
            for (name, code), documents in zip(self._code.items(), counts[1:], strict=True)
        ]


def _nothing(label: Any) -> bool:
    """Whether a label says that there is none."""
    if label is None:
        return True
    return isinstance(label, (str, float, np.floating)) and (
        str(label).strip().lower() in UNLABELLED
    )
