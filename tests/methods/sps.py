"""Shuffled parameter sharing of Pea-KD (Cho and Kang 2022): attention twice, maps exchanged."""

import torch
import transformers
from torch import nn
from transformers.models.bert.modeling_bert import BertSelfAttention

from kdcache.models.sharing import SHARED
from tests.methods import Found, Given

MASKED = -10_000.0  # what the code adds to the scores of pads


def twice(given: Given) -> Found:
    """Two of BERT's attention modules, of which the upper shares."""
    width = given["hidden"].shape[-1]
    config = transformers.BertConfig(
        hidden_size=width,
        num_attention_heads=int(given.number("heads")),
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    lower, upper = (BertSelfAttention(config).to(given.dtype) for _ in range(2))
    for name in ("query", "key", "value"):
        module = getattr(lower, name)
        for kind, letter in (("weight", "w"), ("bias", "b")):
            setattr(module, kind, nn.Parameter(given[f"{letter}_{name}"].detach()))
    SHARED["shuffled"](lower, upper)
    for block in (lower, upper):
        leaves(block, given, swapped=block is upper)
    pads = torch.arange(given["hidden"].shape[1])[None] >= given.lengths[:, None]
    mask = torch.where(pads, MASKED, 0.0).to(given.dtype)[:, None, None]
    first = lower(given["hidden"], mask)[0]
    second = upper(first, mask)[0]
    loss = (second * given["probe"]).sum()
    return Found(loss=loss, parts={"out_context1": first, "out_context2": second})


def leaves(block: nn.Module, given: Given, *, swapped: bool) -> None:
    """Put the leaves of the case where the block has a parameter that is equal to one."""
    for name, module in block.named_children():
        for kind in [kind for kind in ("weight", "bias") if kind in module._parameters]:
            own = module._parameters.pop(kind)
            same = [
                leaf
                for leaf in (given[f"{kind[0]}_{other}"] for other in ("query", "key", "value"))
                if torch.equal(leaf.detach(), own.detach())
            ]
            assert len(same) == 1, (name, swapped)
            setattr(module, kind, same[0])


CASES = {"peakd.sps": twice}
