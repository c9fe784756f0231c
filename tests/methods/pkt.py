"""Probabilistic knowledge transfer (Passalis and Tefas 2018)."""

from kdcache.losses import PKT, Pair
from tests.methods import Found, Given, layer_rows, one_each, value


def neighbours(given: Given) -> Found:
    """Vectors of documents."""
    pair = Pair(given["s_feature"], layer_rows(given["t_feature"]))
    return Found(loss=value(PKT(), [pair], one_each(len(pair.student))))


CASES = {"nine.pkt": neighbours}
