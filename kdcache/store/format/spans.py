"""Which rows of which chunks are wanted: the deciding half of reading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kdcache.plans import Array

Cut = tuple[int, int, int, int]


@dataclass(frozen=True)
class Pieces:
    """Rows cut at the edges of chunks, in the order they were asked for.

    Attributes:
        cuts: number of a chunk in the array, first row within it, number of rows, and the row of
            the result they belong at.
        total: rows of all pieces.
        chunk_rows: rows of a chunk.
    """

    cuts: list[Cut]
    total: int
    chunk_rows: int
    _shards: dict[int, dict[int, list[Cut]]] = field(default_factory=dict)

    def by_shard(self, chunks: int) -> dict[int, list[Cut]]:
        """The cuts in each shard of `chunks` chunks, which they then number from 0."""
        known = self._shards.get(chunks)
        if known is None:  # arrays of one row space mostly share their shards' rows
            known = self._shards[chunks] = {}
            for chunk, first, rows, at in self.cuts:
                number, inner = divmod(chunk, chunks)
                known.setdefault(number, []).append((inner, first, rows, at))
        return known


def cut_spans(starts: Array, counts: Array, chunk_rows: int) -> Pieces:
    """Cut the rows [start, start + count) of each span into pieces of one chunk each.

    Spans that follow one another in the array are joined first, so that documents that are
    neighbours on disk are read as one.
    """
    cuts: list[Cut] = []
    at = 0
    for start, stop in _joined(starts, counts):
        while start < stop:
            chunk, first = divmod(start, chunk_rows)
            rows = min(stop - start, chunk_rows - first)
            cuts.append((chunk, first, rows, at))
            at, start = at + rows, start + rows
    return Pieces(cuts, at, chunk_rows)


def _joined(starts: Array, counts: Array) -> Iterator[tuple[int, int]]:
    begin = end = 0
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        if start != end:
            yield begin, end
            begin = end = start
        end += count
    yield begin, end
