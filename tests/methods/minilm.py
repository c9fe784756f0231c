"""MiniLM, of both versions: the published code of the second gives the relations of either."""

from __future__ import annotations

import torch

from kdcache.losses import Pair
from kdcache.losses.relations import KINDS, Relations
from tests.methods import Found, Given, layer_rows, tokens, value


def relations(given: Given) -> Found:
    """The relations of one layer, together and one by one."""
    names = [
        f"{KINDS[first - 1]}-{KINDS[other - 1]}" for first, other in given["relations"].tolist()
    ]
    heads = int(given.number("relation_heads"))
    (weight,) = set(given.arrays["weights"].tolist())
    how = {1.0: "sum", 1 / len(names): "mean"}[weight]

    def of(*some: str) -> torch.Tensor:
        loss = Relations(relations=some, combine=how, heads=heads)
        pairs = [_pair(given, kind) for kind in loss.kinds]
        return value(loss, pairs, given.lengths)

    return Found(loss=of(*names), parts={"out_parts": torch.stack([of(name) for name in names])})


def _pair(given: Given, kind: str) -> Pair:
    """Both sides of the queries, keys or values of all tokens."""
    ours, theirs = (tokens(given[f"{side}_{kind[0]}"], given.lengths) for side in "st")
    return Pair(ours, layer_rows(theirs))


CASES = {"minilm_v1": relations, "minilm_v2": relations}
