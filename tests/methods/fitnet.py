"""FitNets (Romero et al. 2015): a hint behind a learned map."""

import torch
from torch.nn.functional import linear

from kdcache.losses import HiddenMSE, Pair
from tests.methods import Found, Given, layer_rows, tokens, value


def hint(given: Given) -> Found:
    """Over real tokens."""
    return Found(loss=over(given, given.lengths))


def padded(given: Given) -> Found:
    """The published code takes pads for tokens, so they are some here; real ones are a part."""
    every = torch.full_like(given.lengths, int(given.lengths.max()))
    return Found(loss=over(given, every), parts={"out_loss_masked": over(given, given.lengths)})


def over(given: Given, lengths: torch.Tensor) -> torch.Tensor:
    """The hint of sequences of so many tokens."""
    ours, theirs = (tokens(given[name], lengths) for name in ("s_hidden", "t_hidden"))
    mapped = linear(ours, given["proj_weight"], given["proj_bias"])
    loss = HiddenMSE(positions="all", projection="linear")
    return value(loss, [Pair(mapped, layer_rows(theirs))], lengths)


CASES = {"nine.fitnet": padded, "fitnet.": hint}
