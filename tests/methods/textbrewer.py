"""Losses of TextBrewer's table, which leave pads out."""

from kdcache.losses import HiddenMSE, Pair, SoftKL
from tests.methods import Found, Given, dense, entropy, layer_rows, one_each, tokens, value


def hidden_states(given: Given) -> Found:
    """All tokens of one layer."""
    ours, theirs = (tokens(given[name], given.lengths) for name in ("s_hidden", "t_hidden"))
    loss = HiddenMSE(positions="all")
    return Found(loss=value(loss, [Pair(ours, layer_rows(theirs))], given.lengths))


def first_tokens(given: Given) -> Found:
    """Its patient loss is a sum over the width, where a hidden loss is a mean."""
    ours, theirs = given["s_hidden"][:, 0], given["t_hidden"][:, 0]
    loss, pair = HiddenMSE(positions="cls", normalize="l2"), Pair(ours, layer_rows(theirs))
    found = value(loss, [pair], one_each(len(ours)), space="document")
    return Found(loss=ours.shape[1] * found)


def soft_labels(given: Given) -> Found:
    """Cross-entropy from soft labels of every position: divergence and the teacher's entropy."""
    ours, theirs = (given[name].flatten(0, 1) for name in ("s_logits", "t_logits"))
    temperature = given.number("temperature")
    loss = SoftKL(temperature=temperature, t_squared=False)
    found = value(loss, [Pair(ours, dense(theirs))], one_each(len(ours)), space="document")
    return Found(loss=found + entropy(theirs, temperature).mean())


CASES = {
    "textbrewer.hid_mse": hidden_states,
    "textbrewer.pkd": first_tokens,
    "textbrewer.kd_ce": soft_labels,
}
