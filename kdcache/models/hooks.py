"""TAPS: what can be read out of a model, and how.

This table and what it names (`attentions`, `classifiers`) alone know the parts of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.models.attentions import QUERY_KEY_VALUE, apart, attention_calls, of_block, refusal
from kdcache.models.classifiers import classifier_reads, pooled
from kdcache.models.input_gradients import GRADIENTS, block_input, block_inputs
from kdcache.models.recording import (
    Forward,
    Found,
    Record,
    Taps,
    autocast_of,
    name_of,
    replaced,
    states_of,
    unwrapped,
)
from kdcache.signals.taps import LOGITS, TAP_KINDS, ModelSizes, Tap


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How a tap is read.

    Attributes:
        take: its values after a forward, by layer.
        record: what has to be recorded during the forward, if anything.
        hidden: whether the model has to return its hidden states.
        gradient: in the place of `take`, what works a tap out by gradients of what was computed.
    """

    take: Callable[[Forward], Found] = lambda forward: {}
    record: Record | None = None
    hidden: bool = False
    gradient: Callable[[Forward, Tap], torch.Tensor] | None = None


def check_taps(config: Any, taps: Taps) -> None:
    """See to it that a model of a configuration can give `taps`, before anything is loaded or run.

    Raises:
        ConfigError: there is no such tap or layer.
        ModelError: the architecture does not attend by query and key alone.
    """
    declared = getattr(config, "tap_widths", None)
    if declared is not None:
        _check_declared(declared, taps)
        return
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    for tap in sorted(taps):
        reader = TAPS[one_of("tap", tap.name, TAPS)]
        _check_layer(tap, depth, config.model_type)
        if reader.record is attention_calls and (why := apart(config)):
            raise refusal(config.model_type, tap.name, why)


def _check_declared(declared: Mapping[str, Sequence[int]], taps: Taps) -> None:
    sizes = ModelSizes(outputs=0, hidden=0, layers=0, declared=declared)
    for tap in sorted(taps):
        sizes.width(one_of("tap", tap.name, TAP_KINDS), tap.layer)


def readers_of(model: Any) -> Mapping[str, Reader]:
    """How the taps of a model are read: as it declares itself, or as transformers' models are."""
    found: Mapping[str, Reader] = getattr(unwrapped(model), "tap_readers", TAPS)
    return found


def _check_layer(tap: Tap, last: int | None, kind: str) -> None:
    first = TAP_KINDS[tap.name].first
    if tap.layer is None:
        return
    if first is None:
        raise ConfigError(f"{tap}: {tap.name} has no layers; leave the layer out")
    if not first <= tap.layer <= (tap.layer if last is None else last):
        zero = " (0 is the embedding output)" if first == 0 else ""
        raise ConfigError(f"{tap} is out of range; the {kind} has layers {first} to {last}{zero}")


def read(forward: Forward, name: str, taps: Taps) -> dict[Tap, torch.Tensor]:
    """The values of a tap at the layers, or in the ways, that are asked for."""
    reader = readers_of(forward.model)[name]
    if reader.gradient is not None:
        return {tap: reader.gradient(forward, tap) for tap in taps if tap.name == name}
    found = reader.take(forward)
    layers = {tap.layer for tap in taps if tap.name == name}
    if None in layers:
        return {Tap(name, layer): value for layer, value in found.items()}
    for layer in layers - found.keys():
        _check_layer(Tap(name, layer), len(found) - 1, name_of(forward.model))
    return {Tap(name, layer): found[layer] for layer in layers}


def _chosen(output: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The task's rows of an input or output of the head, unless only they went through it."""
    if rows is None:
        return output
    flat = output.flatten(0, -2)
    return flat if len(flat) == len(rows) else flat[rows]


def _logits(forward: Forward) -> Found:
    logits = forward.out.logits
    if forward.rows is None and logits.dim() > 2:
        raise ModelError(
            f"{name_of(forward.model)} gives logits of every token but names no output layer, by "
            "which language models are known: say the task"
        )
    return {None: _chosen(logits, forward.rows)}


def _head(forward: Forward) -> Found:
    (seen,) = forward.recorded[head_reads]
    return {None: _chosen(seen["input"], forward.rows)}


@contextmanager
def head_reads(model: Any, taps: Taps) -> Iterator[list[dict[str, Any]]]:
    """Keep what the output layer reads, with the autocast of that moment.

    It is kept here because what the model returns may have been converted on its way out. Unless
    logits are asked for too, the layer is not applied and hands on what it reads.
    """
    head = unwrapped(model).get_output_embeddings()
    apply = partial(type(head).forward, head) if LOGITS in taps else _as_it_is
    seen: list[dict[str, Any]] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        seen.append({"input": x, "autocast": autocast_of(x.device.type)})
        output: torch.Tensor = apply(x)
        return output

    with replaced(head, "forward", keep):
        yield seen


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x


def _hidden(forward: Forward) -> Found:
    return dict(enumerate(states_of(forward)))


def _embeddings(forward: Forward) -> Found:
    return {None: states_of(forward)[0]}


TAPS: dict[str, Reader] = {
    "logits": Reader(take=_logits),
    "head": Reader(take=_head, record=head_reads),
    "hidden": Reader(take=_hidden, hidden=True),
    "embeddings": Reader(take=_embeddings, hidden=True),
    "pooled": Reader(take=pooled, record=classifier_reads),
    **{
        kind: Reader(take=partial(of_block, kind), record=attention_calls)
        for kind in QUERY_KEY_VALUE
    },
    **{
        kind: Reader(gradient=partial(of_kind, block_input), record=block_inputs, hidden=True)
        for kind, of_kind in GRADIENTS.items()
    },
}
"""How each of TAP_KINDS is read, by its name."""
