"""Splitting labelled documents, by class and without a text on both sides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def dev_rows(texts: Ints, classes: Ints, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which of N documents are set aside to choose on, about `share` of every class: [N] bool.

    `texts` [N] numbers the distinct texts: documents of one text stay together, as members of the
    class of the first. `classes` [N] are class ids, all 0 where labels are values. A class of two
    texts or more gives one at least, and keeps one.
    """
    firsts = np.unique(texts, return_index=True)[1]
    rng = np.random.default_rng((seed, 1))
    chosen: list[int] = []
    for name in np.unique(classes[firsts]):
        members = firsts[classes[firsts] == name]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen += rng.permutation(texts[members])[:count].tolist()
    return np.isin(texts, chosen)


def sample(classes: Ints, most: int, seed: int) -> Ints:
    """Rows of at most about `most` documents, in order, with a like share of every class."""
    if not most or len(classes) <= most:
        return np.arange(min(most, len(classes)))
    return np.flatnonzero(dev_rows(np.arange(len(classes)), classes, most / len(classes), seed))
