"""Contrastive representation distillation (Tian et al. 2020)."""

import torch
from torch.nn.functional import linear, normalize

from kdcache.losses.crd import contrast_rows, remember
from tests.methods import Found, Given


def first_step(given: Given) -> Found:
    """The file says which documents were drawn; sums are told from this batch."""
    vectors = {
        "student": normalize(linear(given["s_feature"], given["ws"], given["bs"]), dim=1),
        "teacher": normalize(linear(given["t_feature"], given["wt"], given["bt"]), dim=1),
    }
    state = {"student": given["memory_s"], "teacher": given["memory_t"], "sums": torch.zeros(2)}
    state["sums"] = state["sums"].to(state["student"].dtype)
    rows = contrast_rows(vectors, given["negatives"], state, given.number("tau"))
    every = torch.ones(len(rows), dtype=torch.bool)
    remember(state, given["index"], vectors, every, given.number("momentum"))
    parts = {"out_new_memory_s": state["student"], "out_new_memory_t": state["teacher"]}
    return Found(loss=rows.mean(), parts=parts)


CASES = {"nine.crd": first_step}
