"""Variational information distillation (Ahn et al. 2019)."""

from typing import Any

import torch
from torch.func import functional_call

from kdcache.losses import VID, Pair
from kdcache.losses.vid import Regressor
from tests.methods import Found, Given, layer_rows, value


def likelihood(given: Given) -> Found:
    """Sequences without a pad, and the maps and variances of the file."""
    ours, theirs = given["s_hidden"], given["t_hidden"]
    maps = {f"maps.{place}.weight": given[f"w{place + 1}"] for place in range(3)}
    learned = {**maps, "scale": given["log_scale"]}
    regressor = Regressor(ours.shape[-1], theirs.shape[-1])

    def regress(*rows: torch.Tensor) -> Any:
        return functional_call(regressor, learned, rows)

    lengths = torch.full((len(ours),), ours.shape[1])
    pair = Pair(ours.flatten(0, 1), layer_rows(theirs.flatten(0, 1)))
    return Found(loss=value(VID(), [pair], lengths, learned=[regress]))


CASES = {"nine.vid": likelihood}
