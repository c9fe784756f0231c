"""Flow of solution procedure (Yim et al. 2017)."""

import torch

from kdcache.losses import FSP, Pair
from tests.methods import Found, Given, layer_rows, tokens, value


def real(given: Given) -> Found:
    """TextBrewer's, and the formula's, is divided by real lengths."""
    sides = given["s_hidden"], given["t_hidden"]
    return Found(loss=flow(*sides, given.lengths))


def padded(given: Given) -> Found:
    """RepDistiller's takes pads for tokens whose states are all zero."""
    length = int(given.lengths.max())
    mask = (torch.arange(length) < given.lengths[:, None])[..., None]
    sides = (given[name] * mask for name in ("s_hidden", "t_hidden"))
    return Found(loss=flow(*sides, torch.full_like(given.lengths, length)))


def flow(student: torch.Tensor, teacher: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Between all layers there are, [layers, B, L, H]."""
    pairs = [
        Pair(tokens(ours, lengths), layer_rows(tokens(theirs, lengths)))
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return value(FSP(), pairs, lengths)


CASES = {"nine.fsp": padded, "textbrewer.fsp": real, "fsp.": real}
