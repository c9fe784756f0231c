"""Similarity-preserving distillation (Tung and Mori 2019)."""

from kdcache.losses import SP, Pair
from tests.methods import Found, Given, layer_rows, one_each, value


def similarities(given: Given) -> Found:
    """Vectors of documents."""
    pair = Pair(given["s_feature"], layer_rows(given["t_feature"]))
    return Found(loss=value(SP(), [pair], one_each(len(pair.student))))


CASES = {"nine.sp": similarities}
