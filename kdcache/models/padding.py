"""What stands in a batch where documents end: pads of the model's own, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kdcache.errors import ModelError
from kdcache.models.embedded import EMBEDS
from kdcache.models.points import POINTS
from kdcache.models.recording import inside, is_compiled
from kdcache.plans.batch import Batch
from kdcache.plans.lengths import cut
from kdcache.signals.activations import Activations, Attention
from kdcache.signals.taps import HEAD, TAP_KINDS, Tap
from kdcache.tasks import Space


def pad_of(config: Any) -> int | None:
    """The pad that a text model's configuration names, if an embedding has a row for it."""
    pad = getattr(config, "pad_token_id", None)
    return pad if pad is not None and 0 <= pad < config.vocab_size else None


@contextmanager
def padded(config: Any, batch: Batch, *, pools: bool) -> Iterator[torch.Tensor]:
    """The ids of a batch, [B, L], padded as a model's configuration says.

    A decoder's classifier `pools` at a document's last token: the last that is not the pad its
    configuration names. Where that names none that an embedding has a row for, an id that no
    document of the batch ends with is named until the forward is over.

    Raises ModelError if there is no such id.
    """
    ids, out = batch["input_ids"], batch["attention_mask"] == 0
    text = config.get_text_config()
    pad = pad_of(text)
    if pad is not None:
        yield ids.masked_fill(out, pad)
    elif not pools:
        yield ids.masked_fill(out, 0)  # nothing asks for the pads, but they need a row
    else:
        free = _not_last(ids, batch["attention_mask"], text.vocab_size)
        with _named(free, config, text):
            yield torch.where(out, free, ids)


def _not_last(ids: torch.Tensor, mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The smallest id that is the last of no row, found on the device: nothing waits for it."""
    if len(ids) >= vocabulary:
        raise ModelError(
            f"the model names no pad, and a batch of {len(ids)} documents may end in every one of "
            f"its {vocabulary} tokens: write a pad_token_id into its config.json, or run fewer "
            "documents at once"
        )
    last = ids.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    used = torch.zeros(len(ids) + 1, dtype=torch.int64, device=ids.device)  # one is left over
    return used.scatter_(0, last.clamp(max=len(ids)), 1).argmin()


@contextmanager
def _named(pad: torch.Tensor, *configs: Any) -> Iterator[None]:
    """Let configurations name a pad that is still on the device, as `==` takes it from there."""
    before = [(vars(config), vars(config).get("pad_token_id")) for config in configs]
    try:
        for fields, _ in before:
            fields["pad_token_id"] = pad
        yield
    finally:
        for fields, named in before:
            fields["pad_token_id"] = named


FORWARD = 64
"""Places that may as well be padded as a student is run once more on a CPU. Of two layers of
all-MiniLM-L6-v2 and 32 sentences, 16 to 96 take the same time.
"""
WORTH = 0.75
"""Of the work on a batch, what its groups take at most: others are not cut. Batches that are of
like length anyway have the random numbers of dropout in one order.
"""


class Piece(NamedTuple):
    """Some documents of a batch: their places in it, [b] int64 and rising, and their batch."""

    docs: torch.Tensor
    batch: Batch


def by_length(batch: Batch, space: Space) -> list[Piece]:
    """The inputs of a batch as batches without a pad, the longest first."""
    lengths = batch["attention_mask"].sum(1)
    every = sorted(set(lengths.tolist()), reverse=True)
    return pieces(batch, space, [(lengths == one).nonzero().squeeze(1) for one in every])


def of_like_length(model: Any, batch: Batch, space: Space) -> list[Piece]:
    """The same as batches with few pads, each worth a forward of its own; none where the batch is.

    That is where a model is trained on a CPU, for which pads are as much work as tokens: documents
    in an order of chance are padded to three times their tokens. Elsewhere a short forward takes as
    long as a long one. What is wrapped (DistributedDataParallel) or compiled has one a step, and
    torch's batch normalisation is over a whole batch.
    """
    trains = torch.is_grad_enabled() and getattr(model, "training", False)
    plain = batch.mask.device.type == "cpu" and inside(model) is model and not is_compiled(model)
    if not (trains and plain) or any(isinstance(one, _NormBase) for one in model.modules()):
        return []

    def cost(number: int, longest: int) -> int:
        return number * longest + FORWARD

    lengths = batch["attention_mask"].sum(1).tolist()
    groups = cut(lengths, cost)
    work = sum(cost(len(group), max(lengths[doc] for doc in group)) for group in groups)
    if work > WORTH * cost(len(lengths), max(lengths)):
        return []
    return pieces(batch, space, [torch.tensor(group) for group in groups])


def pieces(batch: Batch, space: Space, groups: Sequence[torch.Tensor]) -> list[Piece]:
    """The inputs of groups of documents, [b] int64 and rising, each as long as its longest.

    Of documents, in a `space` of a row each, they have the labels too.
    """
    mask = batch["attention_mask"]
    found = []
    for docs in groups:
        length = int(mask[docs].sum(1).max())
        inputs = {
            name: batch[name][docs, :length]
            for name in ("input_ids", "attention_mask", "token_type_ids", EMBEDS, POINTS)
            if name in batch
        }
        if space == "document" and "labels" in batch:
            inputs["labels"] = batch["labels"][docs]
        if "selected" in batch:
            inputs["selected"] = _selected(batch["selected"], docs, length, mask.shape[1])
        found.append(Piece(docs, Batch(inputs)))
    return found


def _selected(selected: torch.Tensor, docs: torch.Tensor, length: int, width: int) -> torch.Tensor:
    """Flat indices into some documents of a length, from those into a batch of that width."""
    doc = selected // width
    inside = torch.isin(doc, docs)
    return torch.searchsorted(docs, doc[inside]) * length + selected[inside] % width


def joined(
    space: Space, batch: Batch, pieces: Sequence[Piece], activations: Sequence[Activations]
) -> Activations:
    """The activations of the pieces of a batch, joined into those of the batch.

    Where a piece is shorter than the batch there are zeros, which nothing attends to.
    """
    doc = _doc_of_row(space, batch)
    rows = torch.cat([torch.isin(doc, piece.docs).nonzero().squeeze(1) for piece in pieces])
    docs = torch.cat([piece.docs for piece in pieces])
    order = {"row": torch.argsort(rows), "document": torch.argsort(docs)}
    width = batch["attention_mask"].shape[1]

    def whole(tap: Tap) -> torch.Tensor:
        parts, per = [one[tap] for one in activations], TAP_KINDS[tap.name].per
        if per == "token":
            return torch.cat([_widened(part, width) for part in parts])[order["document"]]
        return torch.cat(parts)[order[per]]

    values = {tap: whole(tap) for tap in activations[0].values}
    return Activations(
        values=values,
        mask=batch.mask,
        selected=batch.get("selected"),
        head=activations[0].head and replace(activations[0].head, hidden=values[HEAD]),
        attention={
            layer: _joined_attention([one.attention[layer] for one in activations], pieces, width)
            for layer in activations[0].attention
        },
    )


def _joined_attention(parts: Sequence[Attention], pieces: Sequence[Piece], width: int) -> Attention:
    """How a block attends in every piece, with one mask for all."""
    full = []
    for part, piece in zip(parts, pieces, strict=True):
        documents, length = piece.batch["input_ids"].shape
        full.append(part.full_mask(documents, length, piece.docs.device))
    added = next((mask.dtype for mask in full if mask.dtype != torch.bool), None)
    masks = []
    for mask in full:
        none = False if added is None else torch.finfo(added).min
        if added is not None and mask.dtype == torch.bool:  # a model adds nothing without pads
            mask = torch.zeros_like(mask, dtype=added).masked_fill(~mask, none)
        short = width - mask.shape[-1]
        masks.append(nn.functional.pad(mask, (0, short, 0, short), value=none))
    order = torch.argsort(torch.cat([piece.docs for piece in pieces]))
    return replace(parts[0], mask=torch.cat(masks)[order], causal=False)


def _doc_of_row(space: Space, batch: Batch) -> torch.Tensor:
    """Which document of the batch each row of a space is of."""
    if space == "selected":
        return batch["selected"] // batch["attention_mask"].shape[1]
    if space == "token":
        return batch.mask.nonzero()[:, 0]
    return torch.arange(len(batch["input_ids"]), device=batch.mask.device)


def _widened(hidden: torch.Tensor, width: int) -> torch.Tensor:
    return nn.functional.pad(hidden, (0, 0, 0, width - hidden.shape[-2]))
