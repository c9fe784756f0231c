"""Losses of TextBrewer's table, which leave pads out."""

import torch

from kdcache.losses import AttentionScores, Cosine, HiddenMSE, Pair, SoftKL
from tests.methods import Found, Given, dense, entropy, layer_rows, one_each, tokens, value
from tests.methods.tinybert import pairs_of


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


def directions(given: Given) -> Found:
    """1 - cos of all tokens of one layer."""
    ours, theirs = (tokens(given[name], given.lengths) for name in ("s_hidden", "t_hidden"))
    loss = Cosine(positions="all")
    return Found(loss=value(loss, [Pair(ours, layer_rows(theirs))], given.lengths))


def attention(given: Given, **options: str) -> Found:
    """Scores of one layer."""
    pairs = pairs_of(given["s_scores"], given["t_scores"], given.lengths)
    heads = given["s_scores"].shape[1]
    return Found(loss=value(AttentionScores(**options), pairs, given.lengths, heads=heads))


def scores_of_all_heads(given: Given) -> Found:
    """Those of the heads added up."""
    return attention(given, heads="sum")


def probabilities(given: Given) -> Found:
    """Cross-entropy of attention rows: their divergence and the teacher's own entropy."""
    found = attention(given, compare="probabilities")
    rows = [
        entropy(scores[:, :n, :n].flatten(0, 1), 1.0).sum() / len(scores)
        for scores, n in zip(given["t_scores"], given.lengths.tolist(), strict=True)
    ]
    return Found(loss=found.loss + torch.stack(rows).sum() / given.lengths.sum())


CASES = {
    "textbrewer.att_mse": attention,
    "textbrewer.att_mse_sum": scores_of_all_heads,
    "textbrewer.att_ce": probabilities,
    "textbrewer.cos": directions,
    "textbrewer.hid_mse": hidden_states,
    "textbrewer.pkd": first_tokens,
    "textbrewer.kd_ce": soft_labels,
}
