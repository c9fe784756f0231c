"""Neuron selectivity transfer (Huang and Wang 2017)."""

import torch

from kdcache.losses import NST, Pair
from tests.methods import Found, Given, layer_rows, value


def selectivity(given: Given) -> Found:
    """Sequences without a pad: the published code has none."""
    ours, theirs = given["s_hidden"], given["t_hidden"]
    lengths = torch.full((len(ours),), ours.shape[1])
    pair = Pair(ours.flatten(0, 1), layer_rows(theirs.flatten(0, 1)))
    return Found(loss=value(NST(), [pair], lengths))


CASES = {"nine.nst": selectivity}
