"""What a classifier reads of a document: the tap `pooled`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kdcache.errors import ModelError
from kdcache.models.recording import Forward, Found, Taps, name_of, require_plain, unwrapped

NAMES = ("classifier", "score", "classification_head")
"""What transformers calls the part of a model that makes logits of what it knows of a document."""


def classifier_of(model: Any) -> nn.Module:
    """The part that makes a classifier's logits; ModelError if there is none by a known name."""
    part: nn.Module = getattr(unwrapped(model), classifier_name(model))
    return part


def put_classifier(model: Any, part: nn.Module) -> None:
    """Let another part make a classifier's logits; ModelError as `classifier_of`."""
    setattr(unwrapped(model), classifier_name(model), part)


def classifier_name(model: Any) -> str:
    """What a model calls the part; ModelError as `classifier_of`."""
    inner = unwrapped(model)
    names = NAMES if inner.get_output_embeddings() is None else ()
    for name in names:
        if isinstance(getattr(inner, name, None), nn.Module):
            return name
    raise ModelError(
        f"{name_of(model)} gives no pooled: it has no classifier by a name that is known here; "
        "take hidden states instead (hidden:layers=..., positions=cls or mean)"
    )


def classify(model: Any, pooled: torch.Tensor) -> torch.Tensor:
    """Logits [B, outputs] that a classifier makes of what it read, [B, W].

    Some classifiers take a document's vector, others all of its tokens, of which they use the
    first: for both that is a document of one token.
    """
    logits: torch.Tensor = classifier_of(model)(pooled.unsqueeze(1))
    return logits.flatten(0, -2)


class _Seen:
    """What passes a classifier in one forward."""

    ids: torch.Tensor
    pad: Any
    read: torch.Tensor
    output: torch.Tensor

    def __init__(self) -> None:
        self.dropped: list[tuple[torch.Tensor, torch.Tensor]] = []


@contextmanager
def classifier_reads(model: Any, taps: Taps) -> Iterator[_Seen]:
    """Keep what the classifier reads and says, what went into dropouts, and the padded ids."""
    require_plain(model, "pooled")
    inner, seen = unwrapped(model), _Seen()

    def begin(_module: Any, _args: Any, given: Mapping[str, Any]) -> None:
        seen.ids, seen.pad = given["input_ids"], inner.config.get_text_config().pad_token_id

    def drop(_module: Any, args: Any, output: torch.Tensor) -> None:
        seen.dropped.append((output, args[0]))

    def end(_module: Any, args: Any, output: torch.Tensor) -> None:
        seen.read, seen.output = args[0], output

    handles = [
        classifier_of(inner).register_forward_hook(end),
        inner.register_forward_pre_hook(begin, with_kwargs=True),
        *(m.register_forward_hook(drop) for m in inner.children() if isinstance(m, nn.Dropout)),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def pooled(forward: Forward) -> Found:
    """Before the dropout in front of the classifier, if there is one.

    A classifier that is shown every token reads the first, or is asked only for what it says of the
    last that is not the pad; `run` makes sure of that once a model.
    """
    seen: _Seen = forward.recorded[classifier_reads]
    read = next((before for after, before in seen.dropped if after is seen.read), seen.read)
    if read.dim() == 3:
        read = read[:, 0] if seen.output.dim() == 2 else _at_ends(read, seen)
    return {None: read}


def _at_ends(read: torch.Tensor, seen: _Seen) -> torch.Tensor:
    places = torch.arange(read.shape[1], device=read.device)
    ends = (places * (seen.ids != seen.pad)).argmax(-1)
    return read[torch.arange(len(read), device=read.device), ends]
