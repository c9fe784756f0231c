"""Parts of a plan: how documents are cut into them, and the rows that each has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.plans.subsample import sampled_count
from kdcache.tasks import RowSpace, Space, Subset

Array = npt.NDArray[Any]

ROW_UNIT = 128  # rows a part has in any space come in multiples of this, up to LARGE
LARGE = 16_384  # beyond this, in multiples of 1,024: an inner chunk must divide a part


def part_rows(rows: Mapping[Space, int], space: RowSpace) -> int:
    """Rows per part in a space, padding included, given those of the spaces of the plan."""
    if isinstance(space, Subset):
        return round_up(int(sampled_count(np.asarray(rows[space.of]), space.fraction)))
    return rows[space]


def round_up(rows: int) -> int:
    """Rows a part is given so that `rows` fit and inner chunks divide it."""
    unit = ROW_UNIT if rows <= LARGE else 1024
    return max(unit, -(-rows // unit) * unit)


def cut(lengths: npt.NDArray[np.int64], part_tokens: int) -> tuple[Array, int]:
    """Cut documents, in order, into the fewest parts of at most `part_tokens` tokens.

    Parts are then evened out, so that the last is not mostly padding.

    Returns the first document of each part plus the number of documents, and the tokens a part
    is given (a multiple of ROW_UNIT, at most `part_tokens` rounded up).
    """
    ends = np.cumsum(lengths)
    bounds = _greedy(ends, part_tokens)
    parts = len(bounds) - 1
    size = min(round_up(-(-int(ends[-1]) // parts)), part_tokens)
    while size < part_tokens:
        even = _greedy(ends, size)
        if len(even) - 1 == parts:
            return even, size
        size = min(round_up(size + 1), part_tokens)
    return bounds, part_tokens


def _greedy(ends: npt.NDArray[np.int64], size: int) -> Array:
    bounds, done = [0], 0
    while bounds[-1] < len(ends):
        stop = int(np.searchsorted(ends, done + size, side="right"))
        if stop == bounds[-1]:
            break  # a document longer than a part never fits: the caller keeps this from happening
        bounds.append(stop)
        done = int(ends[stop - 1])
    return np.asarray(bounds, np.int64)
