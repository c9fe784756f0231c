"""Which bytes of which chunks hold some rows: the deciding half of reading."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kdcache.plans import Array


class Pieces(NamedTuple):
    """Rows cut at the edges of chunks, in the order they were asked for; all [pieces] int64.

    Attributes:
        chunk: number of the chunk in the array.
        first: first row within the chunk.
        rows: number of rows.
        at: row of the result they belong at.
    """

    chunk: Array
    first: Array
    rows: Array
    at: Array


def cut_spans(starts: Array, counts: Array, chunk_rows: int) -> Pieces:
    """Cut the rows [start, start + count) of each span into pieces of one chunk each.

    Spans that follow one another in the array are joined first, so that documents that are
    neighbours on disk are read as one.
    """
    kept = counts > 0
    starts, counts = starts[kept].astype(np.int64), counts[kept].astype(np.int64)
    ends = starts + counts
    opens = np.ones(len(starts), bool)
    opens[1:] = starts[1:] != ends[:-1]
    closes = np.ones(len(starts), bool)
    closes[:-1] = opens[1:]
    at = (np.cumsum(counts) - counts)[opens]
    starts, ends = starts[opens], ends[closes]
    chunk = starts // chunk_rows
    number = (ends - 1) // chunk_rows - chunk + 1
    if (number > 1).any():
        span = np.repeat(np.arange(len(starts)), number)
        chunk = chunk[span] + np.arange(len(span)) - (np.cumsum(number) - number)[span]
        low = np.maximum(starts[span], chunk * chunk_rows)
        high = np.minimum(ends[span], (chunk + 1) * chunk_rows)
        at = at[span] + low - starts[span]
    else:
        low, high = starts, ends
    return Pieces(chunk, low - chunk * chunk_rows, high - low, at)
