"""Correlation congruence (Peng et al. 2019), in the code of RepDistiller."""

from kdcache.losses import CC, Pair
from tests.methods import Found, Given, layer_rows, one_each, value


def congruence(given: Given) -> Found:
    """Vectors of documents."""
    pair = Pair(given["s_feature"], layer_rows(given["t_feature"]))
    return Found(loss=value(CC(), [pair], one_each(len(pair.student))))


CASES = {"nine.cc": congruence}
