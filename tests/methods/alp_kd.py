"""ALP-KD (Passban et al. 2021)."""

import torch

from kdcache.losses import ALP, Pair
from kdcache.losses.alp import layer_shares
from tests.methods import Found, Given, layer_rows, one_each, value


def attended(given: Given) -> Found:
    """[CLS] of every layer of the student from all of the teacher's, the embeddings left out."""
    students = [layer[:, 0] for layer in given["s_hidden"][1:]]
    teachers = [layer_rows(layer[:, 0]) for layer in given["t_hidden"][1:]]
    layers = "mean" if given.number("mean_layers") else "sum"
    loss = ALP(scaled=bool(given.number("scale_dot")), layers=layers)
    sizes = one_each(len(students[0]))
    each = [[Pair(ours, theirs) for theirs in teachers] for ours in students]
    known = torch.stack([layer[:, 0] for layer in given["t_hidden"][1:]], 1)
    shares = [layer_shares(ours, known, scaled=loss.scaled) for ours in students]
    return Found(
        loss=value(loss, [pair for pairs in each for pair in pairs], sizes, space="document"),
        parts={
            "out_per_layer": torch.stack(
                [value(loss, pairs, sizes, space="document") for pairs in each]
            ),
            "out_weights": torch.stack(shares, 1),
        },
    )


CASES = {"alp_kd": attended}
