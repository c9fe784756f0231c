"""Texts some of whose tokens are masked, to be predicted from the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kdcache.tasks.base import Entry, Task, encode_texts
from kdcache.tasks.masking import mask

if TYPE_CHECKING:
    from kdcache.corpora.documents import Document
    from kdcache.models import Tokenizer
    from kdcache.plans import PlanConfig


def encode_masked(
    batch: Sequence[Document], first: int, tokenizer: Tokenizer, config: PlanConfig
) -> tuple[Iterator[Entry], int]:
    """Windows of texts with some of their tokens masked."""
    whole, truncated = encode_texts(batch, first, tokenizer, config, windows=True)
    return (view for entry in whole for view in masked(entry, tokenizer, config)), truncated


def masked(entry: Entry, tokenizer: Tokenizer, config: PlanConfig) -> Iterator[Entry]:
    """Every view of a document, masked anew: the labels are the tokens that were there."""
    maskable = ~np.isin(entry.tokens, tokenizer.special_ids)
    for view in range(config.views):
        made = mask(
            entry.tokens,
            maskable,
            probability=config.mask_probability,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            key=(config.seed, entry.doc, entry.window, view),
        )
        yield entry._replace(
            view=view, tokens=made.tokens, positions=made.positions, labels=made.labels
        )


MASKED_LM = Task(
    name="masked-lm",
    auto="AutoModelForMaskedLM",
    heads=("ForMaskedLM",),
    rows="selected",
    kinds=("tokens",),
    signals=("logits:topk,k=64",),
    pipeline="fill-mask",
    call='pipe(f"a text with a {pipe.tokenizer.mask_token} in it")',
    measured="masked-lm",
    options=("mask_probability", "views"),
    ids=("mask_id",),
    selected="masked positions",
    encode=encode_masked,
)

MASKED_LM_ALL = replace(MASKED_LM, name="masked-lm-all", rows="token")
"""What it says of every token of the masked texts, as DistilBERT learns it (Sanh et al. 2019,
arXiv:1910.01108); the tokens that are masked, and have a label, are selected here too."""
