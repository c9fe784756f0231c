"""Documents cut into groups of like length, so that little is worked out for pads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate


def cut(lengths: Sequence[int], cost: Callable[[int, int], float]) -> list[list[int]]:
    """Groups of the documents of some lengths that cost least together, the longest first.

    `cost` is that of a group, which rises with both: of its number of documents, and the length of
    its longest. In each group, places of documents rise.
    """
    sizes = Counter(lengths)
    every = sorted(sizes, reverse=True)
    upto = [0, *accumulate(sizes[length] for length in every)]
    best, first = [0.0], [0]  # of the lengths up to each, and where the last of their groups begins
    for end in range(1, len(every) + 1):
        ways = [best[at] + cost(upto[end] - upto[at], every[at]) for at in range(end)]
        best.append(min(ways))
        first.append(ways.index(best[end]))
    bands, end = [], len(every)
    while end:
        bands.append(set(every[first[end] : end]))
        end = first[end]
    return [[at for at, length in enumerate(lengths) if length in band] for band in bands[::-1]]
