"""Which tokens of a vocabulary a student keeps, and under which numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.errors import ModelError

FILE = "vocabulary.npy"
"""Beside a student, what `KeptTokens.numbers` is."""


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """The tokens that a student keeps of its teacher's vocabulary, in the order that they had.

    Attributes:
        numbers: [V] int32, the number that each token of the teacher's has among them; -1: left
            out. They rise where they are not -1.
    """

    numbers: npt.NDArray[np.int32]

    @classmethod
    def of(cls, ids: Iterable[int], size: int) -> KeptTokens:
        """Those of `ids`, of a vocabulary of so many."""
        numbers = np.full(size, -1, np.int32)
        kept = np.unique(np.fromiter(ids, np.int64))
        numbers[kept] = np.arange(len(kept), dtype=np.int32)
        return cls(numbers)

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """What they are in the teacher's vocabulary, [rows], rising."""
        return np.flatnonzero(self.numbers >= 0)

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.ids)

    def rows_of(self, table: int) -> npt.NDArray[np.int64]:
        """Rows that are kept of a table of embeddings, of which a tokenizer may have more."""
        return self.ids[self.ids < table]

    def number(self, token: int | None) -> int | None:
        """The number of one token; None: it is left out, or there is none such."""
        if token is None or not 0 <= token < len(self.numbers):
            return None
        found = int(self.numbers[token])
        return None if found < 0 else found

    @property
    def sha256(self) -> str:
        """Of all numbers."""
        return hashlib.sha256(self.numbers.tobytes()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write them beside a student."""
        np.save(folder / FILE, self.numbers)


def kept_beside(student: str | Path) -> KeptTokens | None:
    """What a student in a folder keeps of its teacher's vocabulary; None: all, or nothing is said.

    Raises ModelError for a file that says something else.
    """
    file = Path(student) / FILE
    if not file.is_file():
        return None
    try:
        numbers = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"{file} is damaged: {error}; train the student anew") from error
    kept = numbers[numbers >= 0] if numbers.dtype == np.int32 and numbers.ndim == 1 else None
    if kept is None or not np.array_equal(kept, np.arange(len(kept))):
        raise ModelError(f"{file} does not number tokens of a vocabulary: train the student anew")
    return KeptTokens(numbers)
