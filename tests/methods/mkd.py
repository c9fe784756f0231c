"""Logits against logits (Liu et al. 2019, MKD)."""

from kdcache.losses import LogitMSE, Pair
from tests.methods import Found, Given, dense, one_each, value


def logits(given: Given) -> Found:
    """The mean over documents and outputs, and that of documents' squared distances."""
    pair, sizes = (
        Pair(given["s_logits"], dense(given["t_logits"])),
        one_each(len(given["s_logits"])),
    )
    found = value(LogitMSE(), [pair], sizes, space="document")
    summed = value(LogitMSE(reduction="row"), [pair], sizes, space="document")
    return Found(loss=found, parts={"out_loss_sum": summed})


CASES = {"mkd": logits}
