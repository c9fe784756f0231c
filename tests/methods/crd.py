"""Contrastive representation distillation (Tian et al. 2020)."""

from dataclasses import dataclass
from typing import Any

import torch

from kdcache.losses import CRD, Pair, Step
from kdcache.signals import ModelSizes
from tests.methods import Found, Given, layer_rows, one_each, value
from tests.methods.simkd import put


@dataclass(frozen=True, kw_only=True)
class Told(CRD):
    """With the documents that a file names in the place of those that are drawn, [B, negatives]."""

    named: torch.Tensor

    def others(self, step: Step, documents: int) -> torch.Tensor:
        return self.named


def first_step(given: Given) -> Found:
    """The file says which documents were drawn, itself first; sums are told from this batch."""
    ours, theirs = given["s_feature"], given["t_feature"]
    named = given["negatives"][:, 1:]
    loss = Told(
        width=given["memory_s"].shape[1],
        negatives=named.shape[1],
        temperature=given.number("tau"),
        momentum=given.number("momentum"),
        named=named,
    )
    sizes = (ModelSizes(outputs=0, hidden=side.shape[1], layers=1) for side in (ours, theirs))
    maps: Any = loss.learned(*sizes)
    for side, mark in (("student", "s"), ("teacher", "t")):
        put(maps[side], "weight", given[f"w{mark}"])
        put(maps[side], "bias", given[f"b{mark}"])
    sums = torch.zeros(2, dtype=ours.dtype)
    state = {"student": given["memory_s"], "teacher": given["memory_t"], "sums": sums}
    found = value(
        loss,
        [Pair(ours, layer_rows(theirs))],
        one_each(len(ours)),
        docs=given["index"],
        learned=maps,
        state=state,
    )
    parts = {"out_new_memory_s": state["student"], "out_new_memory_t": state["teacher"]}
    return Found(loss=found, parts=parts)


CASES = {"nine.crd": first_step}
