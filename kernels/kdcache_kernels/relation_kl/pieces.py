"""What of the relations exists at once, and where it lies in vectors of tokens."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """Documents of one length n, one after the other, at some of the heads."""

    documents: slice
    tokens: slice
    length: int
    heads: slice

    def read(self, x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        """Its part of `x` [N, W], cut into `heads`: [documents, heads, n, d]."""
        return self._view(x, heads).to(dtype)

    def write(self, x: Tensor, heads: int, values: Tensor) -> None:
        """Put what `read` would give, in that order, in its place."""
        there = self._view(x, heads)
        there.copy_(values.view(there.shape))

    def _view(self, x: Tensor, heads: int) -> Tensor:
        rows: Tensor = x[self.tokens].unflatten(1, (heads, -1)).unflatten(0, (-1, self.length))
        return rows[:, :, self.heads].transpose(1, 2)


def pieces_of(lengths: Sequence[int], heads: int, most: int) -> Iterator[Piece]:
    """All of documents of those lengths, in pieces of at most `most` relations of two tokens, or of
    one head of one document.
    """
    first = token = 0
    for length, run in itertools.groupby(lengths):
        last, together = first + len(list(run)), max(1, most // (heads * length**2))
        parts = min(heads, max(1, most // length**2))
        for start in range(first, last, together):
            documents = slice(start, min(start + together, last))
            end = token + (documents.stop - start) * length
            for head in range(0, heads, parts):
                part = slice(head, min(head + parts, heads))
                yield Piece(documents, slice(token, end), length, part)
            token = end
        first = last
