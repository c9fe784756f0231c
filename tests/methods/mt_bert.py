"""MT-BERT (Wu et al. 2021): the sum over teachers, weighed by their error on the label."""

import torch
from torch.nn.functional import cross_entropy, linear

from kdcache.losses import Hard, HiddenMSE, Pair, SoftKL
from kdcache.losses.teachers import CHOOSERS, Asked
from tests.methods import (
    Found,
    Given,
    batch_of,
    dense,
    entropy,
    layer_rows,
    one_each,
    tokens,
    value,
)


def several(given: Given) -> Found:
    """Soft labels are cross-entropies there: the teachers' own entropies are added."""
    labels, teachers = given["labels"], given["t_logits"]
    sizes = one_each(len(labels))
    asked = Asked(
        teachers=tuple(map(str, range(len(teachers)))),
        probability=(1 / len(teachers),) * len(teachers),
        batch=batch_of(sizes),
        seed=0,
        step=0,
        cross_entropy=lambda name: cross_entropy(teachers[int(name)], labels, reduction="none"),
    )
    shares = CHOOSERS["inverse-ce"].shares(asked)
    hard = value(Hard(), [Pair(given["s_logits"], labels)], sizes, space="document", labels=labels)
    found = [hard]
    for name, share in shares.items():
        found += [soft_labels(given, int(name), share), hidden_states(given, int(name))]
    parts = {
        "out_hard": hard,
        "out_weights": torch.stack([*map(torch.as_tensor, shares.values())]),
    }
    return Found(
        loss=torch.stack(found).sum(),
        parts={name: part for name, part in parts.items() if name in given},
    )


def soft_labels(given: Given, place: int, share: object) -> torch.Tensor:
    """Cross-entropy from one teacher's soft labels, each document times its share."""
    theirs, temperature = given["t_logits"][place], given.number("temperature")
    loss = SoftKL(temperature=temperature, t_squared=False)
    pair = Pair(given["s_logits"], dense(theirs))
    found = value(loss, [pair], one_each(len(theirs)), space="document", share=share)
    return found + (share * entropy(theirs, temperature)).mean()


def hidden_states(given: Given, place: int) -> torch.Tensor:
    """The sum over layers, one map for all of them, all tokens."""
    weight, bias = given["proj_weight"][place], given["proj_bias"][place]
    layers = given["s_hidden"]
    whole = torch.full(layers.shape[1:2], layers.shape[2])
    sizes = given.lengths if "lengths" in given else whole
    pairs = [
        Pair(linear(tokens(ours, sizes), weight, bias), layer_rows(tokens(theirs, sizes)))
        for ours, theirs in zip(layers, given["t_hidden"][place], strict=True)
    ]
    return value(HiddenMSE(positions="all", layers="sum"), pairs, sizes)


CASES = {"mt_bert": several}
