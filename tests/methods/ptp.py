"""Pretraining of Pea-KD (Cho and Kang 2022) on what kind of prediction the teacher made."""

import torch
from torch import nn

from kdcache.losses import PTP, Pair
from kdcache.losses.ptp import KINDS, predictions
from tests.methods import Found, Given, dense, one_each, value


def pretraining(given: Given) -> Found:
    """The file has the student's four logits: its layer hands on what it reads."""
    logits, labels, theirs = given["s_logits4"], given["labels"], dense(given["t_logits"])
    bounds = {"right": given.number("t_correct"), "wrong": given.number("t_wrong")}
    layer = nn.Linear(KINDS, KINDS).to(logits.dtype)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    pairs = [Pair(logits, theirs), Pair(logits, labels)]
    sizes = one_each(len(labels))
    found = value(PTP(**bounds), pairs, sizes, space="document", labels=labels, learned=layer)
    kinds = predictions(theirs, labels, **bounds)
    return Found(loss=found, parts={"out_ptp_label": kinds.to(torch.float64)})


CASES = {"peakd.ptp": pretraining}
