"""Word embeddings that a model reads in the place of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from kdcache.errors import ModelError
from kdcache.models.recording import name_of, replaced, require_plain, unwrapped
from kdcache.plans.batch import Batch

EMBEDS = "inputs_embeds"
"""Name in a batch of what is read in the place of word embeddings, [B, L, H]."""


def named_embeddings(model: Any) -> Any:
    """What a model says its word embeddings are; None: it says nothing."""
    try:
        return unwrapped(model).get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of a module of one's own; of transformers
        return None


def word_embeddings(model: Any) -> nn.Embedding:
    """The table of a model's word embeddings.

    Raises ModelError for a model without one, or that does more than look tokens up in it.
    """
    found = named_embeddings(model)
    if type(found) is not nn.Embedding:
        kind = "none" if found is None else type(found).__name__
        raise ModelError(
            f"{name_of(model)} reads no plain table of word embeddings (it has {kind}), so nothing "
            "can stand in their place: leave inputs out, or choose another student"
        )
    return found


@contextmanager
def embedded(model: Any, batch: Batch) -> Iterator[None]:
    """Let a model read the `inputs_embeds` of a batch, if it has some, where there are tokens.

    They stand where its table is looked up. Positions, types, norms and pads are then the model's
    own, of the ids that it is given too: some models count positions by them, and pool by them.

    Raises ModelError for a model that did not look its table up.
    """
    if EMBEDS not in batch:
        yield
        return
    require_plain(model, "word embeddings")
    read: list[torch.Tensor] = []

    def instead(_module: Any, _inputs: Any, own: torch.Tensor) -> torch.Tensor:
        read.append(torch.where(batch.mask.unsqueeze(-1), batch[EMBEDS].to(own.dtype), own))
        return read[-1]

    handle = word_embeddings(model).register_forward_hook(instead)
    try:
        yield
    finally:
        handle.remove()
    if not read:
        raise ModelError(
            f"{name_of(model)} does not look its word embeddings up where they can be replaced: "
            "leave inputs out, or choose another student"
        )


Share = Callable[[torch.Tensor, int], AbstractContextManager[None]]
"""Of some documents of a batch, [b] int64, and their length: while a model runs on them."""


def looked_up_once(model: Any, batch: Batch, pad: int) -> Share:
    """Let a model that runs on parts of a batch read word embeddings that are looked up once.

    Each lookup has a gradient as large as the table. A lookup of anything else, other pads than
    `pad` among it, is what it is, and all are of a model without a plain table, or that reads
    something in its place. Hooks of the table run for each part.
    """
    table: Any = named_embeddings(model)
    plain = type(table) is nn.Embedding and not (table.scale_grad_by_freq or table.sparse)
    if not plain or EMBEDS in batch or table.max_norm is not None:
        return lambda docs, length: nullcontext()
    ids, lookup = batch["input_ids"].masked_fill(~batch.mask, pad), table.forward
    rows: torch.Tensor = lookup(ids)

    def share(docs: torch.Tensor, length: int) -> AbstractContextManager[None]:
        own = ids[docs, :length]

        def instead(asked: torch.Tensor) -> torch.Tensor:
            if not torch.equal(asked, own):
                found: torch.Tensor = lookup(asked)
                return found
            return rows.index_select(0, docs)[:, : own.shape[1]]

        return replaced(table, "forward", instead)

    return share
