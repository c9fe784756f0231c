"""A file of a corpus, or a data set, opened so far that its columns are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = tuple[str, Mapping[str, Any]]  # where it stands ("file:line"), its columns
Wanted = Sequence[str] | None  # columns to read; None: all of them


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file of a corpus, or a data set, opened so far that its columns are known.

    Attributes:
        name: to call it in an error.
        columns: its columns; None where every row names its own, as in JSON.
        rows: its rows with the columns asked for, or with more where that costs nothing.
        texts: columns that can hold text; None: any of them.
        class_names: of columns of class numbers that say which classes these are.
    """

    name: str
    columns: tuple[str, ...] | None
    rows: Callable[[Wanted], Iterator[Row]] = field(repr=False)
    texts: tuple[str, ...] | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
