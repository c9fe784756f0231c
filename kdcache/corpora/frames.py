"""Tables of pandas frames, without a need of pandas where nobody has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kdcache.corpora.tables import Row, Table, Wanted
from kdcache.errors import CorpusError

BATCH = 1000  # rows made plain at once
_TEXT_KINDS = "OSU"  # numpy's kinds of columns that can hold text


def frame_table(frame: Any) -> Table:
    """Open a `pandas.DataFrame`; CorpusError for columns that are not named by different texts."""
    names = list(frame.columns)
    for name in names:
        if not isinstance(name, str):
            raise CorpusError(
                f"the columns of a frame are named by text; got {name!r}: rename it, as by "
                "frame.rename(columns=str)"
            )
        if names.count(name) > 1:
            raise CorpusError(f"two columns of the frame are called {name!r}; rename one")
    kinds = dict(zip(names, frame.dtypes, strict=True))
    return Table(
        name="the frame",
        columns=tuple(names),
        rows=lambda wanted: _rows(frame, names, wanted),
        texts=tuple(name for name, kind in kinds.items() if kind.kind in _TEXT_KINDS),
    )


def _rows(frame: Any, names: Sequence[str], wanted: Wanted) -> Iterator[Row]:
    chosen = [name for name in names if wanted is None or name in wanted]
    for start in range(0, len(frame), BATCH):
        part = frame.iloc[start : start + BATCH]
        columns = [_plain(part[name]) for name in chosen]
        for index in range(len(part)):
            row = {name: column[index] for name, column in zip(chosen, columns, strict=True)}
            yield f"frame row {start + index}", row


def _plain(column: Any) -> list[Any]:
    """The values of a column as Python's own, arrays as lists; None for those that are missing."""
    missing = column.isna().tolist()
    values = (v.tolist() if hasattr(v, "tolist") else v for v in column.tolist())
    return [None if gone else v for v, gone in zip(values, missing, strict=True)]
