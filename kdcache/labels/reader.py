"""Raw labels of a corpus, as they are read."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import numpy as np

from kdcache.errors import CorpusError
from kdcache.labels.readings import Label, number

UNLABELLED = {"", "nan"}


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
