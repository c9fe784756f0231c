"""Attention transfer (Zagoruyko and Komodakis 2017)."""

from kdcache.losses import AT, Pair
from tests.methods import Found, Given, layer_rows, tokens, value


def maps(given: Given) -> Found:
    """The published code sets pads to zero and counts them in its mean."""
    pads = "count" if given.kind == "code" else "out"
    ours, theirs = (tokens(given[name], given.lengths) for name in ("s_hidden", "t_hidden"))
    pair = Pair(ours, layer_rows(theirs))
    return Found(loss=value(AT(pads=pads), [pair], given.lengths))


CASES = {"nine.at": maps, "at.": maps}
