"""Logits against logits (Liu et al. 2019, MKD)."""

from kdcache.losses import LogitMSE, Pair
from tests.methods import Found, Given, dense, one_each, value


def logits(given: Given) -> Found:
    """The mean over documents and outputs."""
    pair = Pair(given["s_logits"], dense(given["t_logits"]))
    found = value(LogitMSE(), [pair], one_each(len(given["s_logits"])), space="example")
    return Found(loss=found, parts={"out_loss_sum": found * given["s_logits"].shape[1]})


CASES = {"mkd": logits}
