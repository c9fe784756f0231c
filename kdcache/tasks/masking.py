"""Static masks for masked language modelling: a pure function of (seed, document, view)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Masked(NamedTuple):
    """A document with masks: tokens to feed, masked positions (sorted), the tokens they held."""

    tokens: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def mask(
    tokens: npt.NDArray[np.int64],
    maskable: npt.NDArray[np.bool_],
    *,
    probability: float,
    mask_id: int,
    vocab_size: int,
    key: tuple[int, ...],
) -> Masked:
    """Mask round(probability * maskable) tokens, at least one where any can be masked.

    Of the chosen tokens 80% become `mask_id`, 10% a random token and 10% stay as they are
    (Devlin et al. 2019, arXiv:1810.04805). `key` seeds the choice.
    """
    candidates = np.flatnonzero(maskable)
    if not len(candidates):
        return Masked(tokens, candidates, candidates)
    rng = np.random.default_rng(key)
    count = max(1, round(probability * len(candidates)))
    positions = np.sort(rng.choice(candidates, count, replace=False))
    labels = tokens[positions]
    draw = rng.random(count)
    replaced = np.where(draw < 0.8, mask_id, rng.integers(0, vocab_size, count))
    masked = tokens.copy()
    masked[positions] = np.where(draw < 0.9, replaced, labels)
    return Masked(masked, positions, labels)
