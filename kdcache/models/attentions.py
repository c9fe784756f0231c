"""What the attention of every block is given: the taps `query`, `key` and `value`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import transformers

from kdcache.errors import ModelError
from kdcache.models.recording import (
    Forward,
    Found,
    Taps,
    name_of,
    replaced,
    require_plain,
    unwrapped,
)
from kdcache.signals import Attention, Tap

QUERY_KEY_VALUE = ("query", "key", "value")
BIAS = "adds a learned bias of positions to query times key"
RELATIVE = "adds scores of relative positions to query times key"
APART = {
    "deberta": RELATIVE,
    "deberta-v2": RELATIVE,
    "mpnet": BIAS,
    "mt5": BIAS,
    "t5": BIAS,
    "umt5": BIAS,
}
"""Architectures whose attention is not made of query and key alone."""
MORE = ("position_bias", "s_aux", "sinks")
"""What an attention function may be given beside query, key and mask, and cannot do without."""
FUNCTIONS = ("sdpa", "eager")


class Call(NamedTuple):
    """What the attention of one block was given: tensors asked for, and how it combines them."""

    values: dict[str, torch.Tensor]
    attention: Attention


@contextmanager
def attention_calls(model: Any, taps: Taps) -> Iterator[dict[int, Call]]:
    """Keep what the attention functions of transformers are given, by block, 1 the first.

    While the model runs, a block that asks transformers for the function of its implementation
    gets one that keeps its arguments and calls that very function with them.
    """
    require_plain(model, "a query, key or value")
    _require_gradients(model)
    heard = _Calls(unwrapped(model), taps)
    functions = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    choose, me = functions.get_interface, threading.get_ident()

    def chosen(name: str, default: Any) -> Any:
        attend = choose(name, default)
        if threading.get_ident() != me:
            return attend  # another model's, of which nobody asked for taps

        def recording(
            module: Any, query: Any, key: Any, value: Any, *mask: Any, **given: Any
        ) -> Any:
            values = dict(zip(QUERY_KEY_VALUE, (query, key, value), strict=True))
            heard.note(name, module, values, {"attention_mask": mask[0] if mask else None, **given})
            return attend(module, query, key, value, *mask, **given)

        return recording

    with replaced(functions, "get_interface", chosen):
        yield heard.calls


class _Calls:
    """Calls of the attention functions in one forward of a model."""

    def __init__(self, model: Any, taps: Taps) -> None:
        self.model, self.taps, self.made = model, taps, 0
        self.calls: dict[int, Call] = {}

    def note(
        self, name: str, module: Any, values: dict[str, torch.Tensor], given: Mapping[str, Any]
    ) -> None:
        """Take in what a module calls with; ModelError if its attention is not of that alone.

        Not every architecture numbers its blocks, and ALBERT runs one again and again: where there
        is no number, calls are counted.
        """
        index = getattr(module, "layer_idx", None)
        layer = 1 + (self.made if index is None else index)
        self.made += 1
        if why := self._objection(name, layer, values, given):
            raise refusal(name_of(self.model), "query, key and value", why)
        wanted = {
            kind: value
            for kind, value in values.items()
            if Tap(kind) in self.taps or Tap(kind, layer) in self.taps
        }
        self.calls[layer] = Call(wanted, _attention(name, module, values["query"], given))

    def _objection(
        self, name: str, layer: int, values: Mapping[str, torch.Tensor], given: Mapping[str, Any]
    ) -> str:
        if name not in FUNCTIONS:
            return f"its attention runs as {name}: load it with attn_implementation='sdpa', or"
        if layer in self.calls:
            return f"block {layer} attends more than once"
        if values["query"].dim() != 4 or values["query"].shape[2] != values["key"].shape[2]:
            return "queries and keys of a block are not of the same tokens"
        more = [kind for kind in MORE if given.get(kind) is not None]
        return f"its attention adds {more[0]} to query times key" if more else ""


def _attention(name: str, module: Any, query: torch.Tensor, given: Mapping[str, Any]) -> Attention:
    causal, scaling = given.get("is_causal"), given.get("scaling")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = given["attention_mask"]
    return Attention(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=given.get("softcap"),
        causal=name == "sdpa" and mask is None and bool(causal),
        mask=mask,
    )


def of_block(kind: str, forward: Forward) -> Found:
    """One of query, key and value by block, once every block of the model has called."""
    calls: dict[int, Call] = forward.recorded[attention_calls]
    depth = forward.model.config.get_text_config().num_hidden_layers
    if calls.keys() != set(range(1, depth + 1)):
        reason = "does not hand them to transformers' attention functions"
        some = f"hands those of {len(calls)} of its {depth} blocks to the attention functions"
        raise refusal(name_of(forward.model), kind, some if calls else reason)
    return {layer: call.values[kind] for layer, call in calls.items() if kind in call.values}


def apart(config: Any) -> str:
    """Why models of a configuration do not attend by query and key alone; empty if they do."""
    text = config.get_text_config()
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    if capped and text._attn_implementation not in (None, "eager"):
        return "caps its scores, which sdpa cannot: load it with attn_implementation='eager', or"
    return APART.get(config.model_type, "")


def refusal(who: str, what: str, why: str) -> ModelError:
    """The error for an architecture that does something else: what was asked, and what it does."""
    end = "" if why.endswith(" or") else ";"
    return ModelError(
        f"{who} gives no {what}: {why}{end} take hidden states instead (hidden:layers=...)"
    )


def _require_gradients(model: Any) -> None:
    """Raise ModelError where blocks run without gradients at first, to be run again later."""
    if not torch.is_grad_enabled():
        return
    for module in model.modules():
        if module.training and getattr(module, "gradient_checkpointing", False):
            how = getattr(module._gradient_checkpointing_func, "keywords", {})
            if how.get("use_reentrant", True):
                raise ModelError(
                    "query, key and value have no gradient under reentrant gradient checkpointing: "
                    "set training.gradient_checkpointing_kwargs to {use_reentrant = false}, or "
                    "leave training.gradient_checkpointing out"
                )
