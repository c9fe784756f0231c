"""Which rows a subset keeps: a function of where documents lie and of a seed, and of nothing else.

Of the first n rows of a part, ceil(n * fraction) are kept, for every n at which a document ends. So
a document's share, and where its kept rows lie among those of the part, follow from its first row
and its length, and a part of fixed size keeps a fixed size. Within a document they are evenly
spaced from a first that is drawn, which makes every row as likely as any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
UNIFORM = 2**53
"""A whole number below it, over it, is a float64 in [0, 1) that is exact."""


def sampled_count(rows: npt.NDArray[Any], fraction: float) -> Rows:
    """How many rows are kept of the first `rows` of a part."""
    return np.ceil(rows * fraction).astype(np.int64)


def spread(lens: Rows, counts: Rows, offsets: Rows) -> Rows:
    """Rows kept within documents of `lens` rows, `counts` of each, one document after the other.

    `offsets`, in [0, length), are where those of each document begin: the j-th of c rows out of n
    is floor((j * n + offset) / c), so that of the n offsets c keep any given row.
    """
    doc = np.repeat(np.arange(len(lens)), counts)
    nth = np.arange(len(doc)) - np.repeat(np.cumsum(counts) - counts, counts)
    return (nth * lens[doc] + offsets[doc]) // counts[doc]


def random_below(seed: int, docs: Rows, below: Rows) -> Rows:
    """A whole number in [0, below) for each document, 0 where `below` is 0.

    SplitMix64 (Steele et al. 2014), started at `seed` and advanced `docs` + 1 times.
    """
    x = (docs.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN) + np.uint64(seed % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    x ^= x >> np.uint64(31)
    return (x % np.maximum(below, 1).astype(np.uint64)).astype(np.int64)


def uniforms(docs: Rows, *entropy: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each document, whatever others there are: float64 of 53 bits.

    `entropy` are numbers of 0 or more, such as a seed and a step.
    """
    (start,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return random_below(int(start), docs, np.full(len(docs), UNIFORM)) / UNIFORM
