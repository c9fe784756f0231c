"""Run a model on a batch, computing the language-model head at the rows of interest only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from kdcache.errors import ModelError
from kdcache.models.attentions import Call, attention_calls
from kdcache.models.classifiers import classifier_of, classify
from kdcache.models.embedded import embedded, looked_up_once
from kdcache.models.hooks import TAPS, Reader, check_taps, head_reads, read, readers_of
from kdcache.models.input_gradients import differentiable
from kdcache.models.padding import by_length, joined, of_like_length, pad_of, padded
from kdcache.models.points import at_points
from kdcache.models.recording import (
    Forward,
    Taps,
    autocast_of,
    choose_head,
    is_compiled,
    members_of,
    name_of,
    unwrapped,
)
from kdcache.plans.batch import Batch
from kdcache.signals.activations import Activations, Head
from kdcache.signals.taps import HEAD, LOGITS, Tap
from kdcache.tasks import Space, Task, as_task

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
EQUAL = "kdcache_equal_lengths"  # attribute of a model whose documents are not to be padded


def run(model: Any, batch: Batch, taps: Taps, *, task: str | Task | None = None) -> Activations:
    """What a transformers model, teacher or student, computes for a batch: exactly the `taps`.

    Logits have exactly the task's rows: one per document, token or selected token. A language
    model's head runs on those rows only, so [B, L, V] never exists. Where `head` is asked for and
    `logits` are not, it does not run at all. Gradients flow through every tap.

    Pads are the model's own; a model that `check_alone` found to say something else with them
    gets documents of one length at a time, and on a CPU one that is trained those of like lengths.
    What a batch has as `inputs_embeds`, [B, L, H], is read in the place of its word embeddings, and
    what it has as `points`, likewise, in the place of its embedding output.

    The first time that a model is asked for `head` or `pooled`, it is run once more, dropout off,
    to see that its logits are made of that; for `query`, `key` or `value`, its blocks are given
    attention functions that keep their arguments while it runs. For `jacobian` and `attribution`
    its graph is kept, also where gradients are off; where they are on, these have a gradient in
    turn, and attention runs as torch's own operations, as fused ones have no second derivative.
    Else nothing is put into a model.

    Args:
        model: also inside DistributedDataParallel, or compiled. Of students trained as one model,
            the first's activations are returned, with those of the others as its peers. Of several
            heads, that of the batch's cache is run.
        task: whose rows the logits have; None: those of a classifier's documents, of the selected
            positions if the batch has some, or of every token.

    Raises:
        ConfigError: there is no such tap or layer.
        ModelError: the architecture, or the way the model is run, does not give a tap.
    """
    choose_head(model, batch.cache)
    members = members_of(model)
    if len(members) > 1:
        first, *peers = (run(member, batch, taps, task=task) for member in members)
        return replace(first, peers=tuple(peers))
    inner = unwrapped(model)
    check_taps(inner.config, taps)
    space = _space_of(inner, batch) if task is None else as_task(task).rows
    _prove(inner, space, batch, taps)
    return _activations(model, space, batch, taps)


def _activations(model: Any, space: Space, batch: Batch, taps: Taps) -> Activations:
    apart = getattr(unwrapped(model), EQUAL, False)
    pieces = by_length(batch, space) if apart else of_like_length(model, batch, space)
    if len(pieces) < 2:
        return _run(model, space, batch, taps)
    pad = pad_of(unwrapped(model).config.get_text_config()) or 0
    share, parts = looked_up_once(model, batch, pad), []
    for piece in pieces:
        with share(piece.docs, piece.batch.mask.shape[1]):
            parts.append(_run(model, space, piece.batch, taps))
    return joined(space, batch, pieces, parts)


def _run(model: Any, space: Space, batch: Batch, taps: Taps) -> Activations:
    names = list(dict.fromkeys(tap.name for tap in taps))
    table = readers_of(model)
    readers = [table[name] for name in names]
    graph, differentiated = torch.is_grad_enabled(), any(reader.gradient for reader in readers)
    with differentiable(graph) if differentiated else nullcontext():
        forward = _recorded(model, space, batch, taps, readers, graph=graph)
        values = {tap: value for name in names for tap, value in read(forward, name, taps).items()}
    if differentiated and not graph:
        values = {tap: value.detach() for tap, value in values.items()}
    calls: dict[int, Call] = forward.recorded.get(attention_calls, {})
    return Activations(
        values=values,
        mask=batch.mask,
        selected=batch.get("selected"),
        head=_unapplied(forward, values),
        attention={layer: call.attention for layer, call in calls.items() if call.values},
    )


def _recorded(
    model: Any, space: Space, batch: Batch, taps: Taps, readers: Sequence[Reader], *, graph: bool
) -> Forward:
    """A forward of a model, and what was recorded for its readers."""
    rows, inner = _rows(space, batch), unwrapped(model)
    with ExitStack() as stack:
        recorded = {
            record: stack.enter_context(record(model, taps))
            for record in dict.fromkeys(reader.record for reader in readers)
            if record is not None
        }
        out = _forward(model, batch, rows, hidden=any(reader.hidden for reader in readers))
    again = partial(_forward, inner, batch, rows, hidden=False)
    return Forward(inner, out, rows, recorded, batch, again, graph)


def _rows(space: Space, batch: Batch) -> torch.Tensor | None:
    """The rows of a space among B * L; None: a row per document."""
    if space == "selected":
        return batch["selected"]
    return batch.mask.flatten().nonzero().squeeze(1) if space == "token" else None


def _unapplied(forward: Forward, values: dict[Tap, torch.Tensor]) -> Head | None:
    if head_reads not in forward.recorded:
        return None
    layer = forward.model.get_output_embeddings()
    (seen,) = forward.recorded[head_reads]
    return Head(
        hidden=values[HEAD],
        weight=layer.weight,
        bias=layer.bias,
        autocast=seen["autocast"],
    )


def _space_of(model: Any, batch: Batch) -> Space:
    """The rows that the logits of a model have: only language models name an output layer."""
    if model.get_output_embeddings() is None:
        return "document"
    return "selected" if "selected" in batch else "token"


_PROVEN: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""The taps that a model was found to make its logits of."""


def _prove(model: Any, space: Space, batch: Batch, taps: Taps) -> None:
    """Raise ModelError for a tap that is not what the logits are made of; once a model.

    A model that reads its taps itself is taken at its word.
    """
    if readers_of(model) is not TAPS:
        return
    proven = _PROVEN.setdefault(model, set())
    for name in sorted({tap.name for tap in taps} & PROOFS.keys() - proven):
        PROOFS[name](model, space, batch)
        proven.add(name)


def _prove_head(model: Any, space: Space, batch: Batch) -> None:
    if plain_head(model, batch) is None:
        raise ModelError(
            f"{name_of(model)} gives no head: its logits are not what a linear output layer says; "
            "take logits instead (logits:topk)"
        )


def _prove_pooled(model: Any, space: Space, batch: Batch) -> None:
    kind = batch.mask.device.type
    seen: list[torch.dtype | None] = []
    part = classifier_of(model)
    handle = part.register_forward_hook(lambda *_: seen.append(autocast_of(kind)))
    try:
        with untouched(model):
            found = _activations(model, space, batch, [Tap("pooled"), LOGITS])
            cast = seen[0]  # of what is around the model's forward, which is not around this
            with torch.autocast(kind, dtype=cast, enabled=cast is not None):
                logits, made = found[LOGITS], classify(model, found[Tap("pooled")])
    finally:
        handle.remove()
    apart, largest = float((logits - made).abs().max()), float(logits.abs().max())
    if not apart <= ROUNDING[cast or logits.dtype] * largest:
        raise ModelError(
            f"{name_of(model)} gives no pooled: its logits are not what its classifier makes of "
            f"one vector of a document (off by {apart:.2g} of {largest:.2g}); take hidden states "
            "instead (hidden:layers=..., positions=cls or mean)"
        )


ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""What two ways to a value may differ by, as a share of the largest: other products round."""
PROOFS: dict[str, Callable[[Any, Space, Batch], None]] = {
    "head": _prove_head,
    "pooled": _prove_pooled,
}


def plain_head(model: Any, batch: Batch) -> nn.Linear | None:
    """The layer whose output a language model's logits are; None if there is none.

    Some models scale or cap what their head says, or multiply by its weight elsewhere. To find out,
    the model is run once on `batch`, dropout off, for the logits of the first token; `run` then
    takes its word for it.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return None
    outputs: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with untouched(model):
            first = torch.zeros(1, dtype=torch.int64, device=batch.mask.device)
            logits = _forward(model, batch, first, hidden=False).logits
    finally:
        handle.remove()
    if len(outputs) != 1 or not torch.equal(outputs[0], logits):
        return None
    _PROVEN.setdefault(model, set()).add("head")
    return head


@contextmanager
def untouched(*models: Any) -> Iterator[None]:
    """Dropout off and no gradients; afterwards modes and random numbers are what they were."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    places = {model.device for model in models if model.device.type == "cuda"}
    numbers = np.random.get_state()  # noqa: NPY002  # this one, which BigBird seeds
    try:
        for model in models:
            model.eval()
        with torch.random.fork_rng(places), torch.no_grad():
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002  # the same
        for module, training in modes:
            module.training = training


def _forward(model: Any, batch: Batch, rows: torch.Tensor | None, *, hidden: bool) -> Any:
    accepted = inspect.signature(unwrapped(model).forward).parameters
    inputs: dict[str, Any] = {k: batch[k] for k in INPUTS if k in batch and k in accepted}
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    config = unwrapped(model).config
    pools = rows is None
    read = embedded(model, batch), at_points(model, batch)
    with _head_rows(model, rows), read[0], read[1], padded(config, batch, pools=pools) as ids:
        return model(**(inputs | {"input_ids": ids}), output_hidden_states=hidden)


@contextmanager
def _head_rows(model: Any, rows: torch.Tensor | None) -> Iterator[None]:
    """Let the head see [1, rows, H] instead of [B, L, H]: language-model heads work row by row.

    That of a compiled model, which may run past the hook or keep the first batch's, sees all.
    """
    inner = unwrapped(model).base_model
    if rows is None or inner is unwrapped(model) or is_compiled(model):
        yield
        return

    def gather(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[rows].unsqueeze(0)
        return output

    handle = inner.register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()
