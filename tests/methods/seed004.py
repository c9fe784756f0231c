"""Losses of a study of kinds, maps and weights (arXiv:2308.13958)."""

from typing import Any

import torch
from torch.nn.functional import linear

from kdcache.losses import AttentionScores, Cosine, HiddenMSE, Loss, Pair, SoftKL
from tests.methods import Found, Given, dense, layer_rows, one_each, tokens, value
from tests.methods.tinybert import pairs_of

HIDDEN: dict[str, Any] = {"mse": HiddenMSE, "cosine": Cosine}
ATTENTION = {"mse": "scores", "kl": "probabilities"}


def weighed(given: Given) -> Found:
    """Attention, hidden states and soft labels, each of its kind and weight."""
    lengths = given.lengths
    hidden: Loss = HIDDEN[given.text("hidden_loss")](positions="all", layers="sum")
    attention = AttentionScores(compare=ATTENTION[given.text("attention_loss")])
    states = [
        Pair(
            linear(tokens(ours, lengths), given["proj_weight"], given["proj_bias"]),
            layer_rows(tokens(theirs, lengths)),
        )
        for ours, theirs in zip(given["s_hidden"], given["t_hidden"], strict=True)
    ]
    scores = [
        pair
        for ours, theirs in zip(given["s_scores"], given["t_scores"], strict=True)
        for pair in pairs_of(ours, theirs, lengths)
    ]
    soft = SoftKL(temperature=given.number("temperature"))
    pair = Pair(given["s_logits"], dense(given["t_logits"]))
    parts = {
        "attention": value(attention, scores, lengths, heads=given["s_scores"].shape[2]),
        "hidden": value(hidden, states, lengths),
        "prediction": value(soft, [pair], one_each(len(lengths)), space="document"),
    }
    loss = [given.number(f"w_{name}") * part for name, part in parts.items()]
    return Found(
        loss=torch.stack(loss).sum(), parts={f"out_{name}": part for name, part in parts.items()}
    )


CASES = {"seed004": weighed}
