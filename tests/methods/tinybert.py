"""TinyBERT (Jiao et al. 2020): layers first, then what the teacher answers."""

import torch
from torch.nn.functional import linear

from kdcache.losses import AttentionScores, HiddenMSE, Pair, SoftKL
from tests.methods import (
    Found,
    Given,
    dense,
    entropy,
    layer_rows,
    one_each,
    query_and_key,
    tokens,
    value,
)


def intermediate(given: Given) -> Found:
    """Hidden states and attention scores; a code that counts pads is held by those without any."""
    every = parts(given, torch.arange(len(given.lengths)))
    if "out_attention_masked" in given:
        masked = {f"{name}_masked": found for name, found in every.items()}
        cut = len(given.lengths) - len(given.whole)
        whole = parts(given, given.whole)
        held = masked if cut else every | masked
        return Found(loss=torch.stack([*whole.values()]).sum(), parts=held, cut=cut)
    return Found(loss=torch.stack([*every.values()]).sum(), parts=every)


def parts(given: Given, which: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both losses of some sequences."""
    block, lengths = int(given.number("block")), given.lengths[which]
    weight, bias = given["proj_weight"], given["proj_bias"]
    states = [
        Pair(
            linear(tokens(ours[which], lengths), weight, bias),
            layer_rows(tokens(theirs[which], lengths)),
        )
        for ours, theirs in zip(given["s_hidden"], given["t_hidden"][::block], strict=True)
    ]
    scores = [
        pair
        for ours, theirs in zip(
            given["s_scores"], given["t_scores"][block - 1 :: block], strict=True
        )
        for pair in pairs_of(ours[which], theirs[which], lengths)
    ]
    heads = given["s_scores"].shape[2]
    return {
        "out_attention": value(AttentionScores(), scores, lengths, heads=heads),
        "out_hidden": value(HiddenMSE(positions="all", layers="sum"), states, lengths),
    }


def pairs_of(ours: torch.Tensor, theirs: torch.Tensor, lengths: torch.Tensor) -> list[Pair]:
    """Queries and keys of one layer, of scores [B, heads, L, L]."""
    sides = zip(query_and_key(ours, lengths), query_and_key(theirs, lengths), strict=True)
    return [Pair(of, layer_rows(to)) for of, to in sides]


def prediction(given: Given) -> Found:
    """Cross-entropy of soft labels, mean over documents and classes, without T^2."""
    student, teacher = given["s_logits"], given["t_logits"]
    temperature, classes = given.number("temperature"), student.shape[1]
    loss = SoftKL(temperature=temperature, reduction="element", t_squared=False)
    found = value(loss, [Pair(student, dense(teacher))], one_each(len(student)), space="document")
    return Found(loss=found + entropy(teacher, temperature).mean() / classes)


CASES = {"tinybert": intermediate, "tinybert.pred": prediction}
