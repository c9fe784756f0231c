"""The linear maps that make queries, keys and values of the hidden states of the layer before."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional

from kdcache.errors import ModelError
from kdcache.models.blocks import blocks_of
from kdcache.models.recording import name_of
from kdcache.models.run import ROUNDING, run, untouched
from kdcache.plans.batch import Batch
from kdcache.signals import Tap
from kdcache.tasks import Task

NAMES = {
    "query": ("query", "q_lin"),
    "key": ("key", "k_lin"),
    "value": ("value", "v_lin"),
}
"""What the maps are called: in BERT and its like, in DistilBERT."""

MADE_OF_STATES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
"""Model types whose projections read the hidden states before a layer as they are."""


def projections(model: Any, layer: int, task: Task, batch: Batch) -> dict[str, nn.Linear]:
    """The maps of the attention of a layer (1 is the first) by `query`, `key` and `value`.

    The model is run once on `batch`, dropout off: each map has to make of the hidden states before
    the layer what its attention gets.

    Raises:
        ModelError: the layer has no such maps, or they read something else, or their outputs are
            rotated or normalised before they meet.
    """
    try:
        _, blocks = blocks_of(model)
    except ModelError as error:  # one block that all layers share
        raise _refusal(model, layer, "query") from error
    maps = {name: _map(model, blocks[layer - 1], layer, name) for name in NAMES}
    before = Tap("hidden", layer - 1)
    with untouched(model):
        activations = run(model, batch, [before, *(Tap(name, layer) for name in maps)], task=task)
        states = activations.rows(before)
        for name, linear in maps.items():
            exact = activations.rows(Tap(name, layer))
            if linear.in_features != states.shape[1] or linear.out_features != exact.shape[1]:
                raise _refusal(model, layer, name)
            made = functional.linear(states, linear.weight, linear.bias)  # as a cache will
            apart = (made.double() - exact.double()).abs().max()
            if not apart <= ROUNDING[exact.dtype] * exact.double().abs().max().clamp(min=1e-6):
                raise _refusal(model, layer, name)
    return maps


def _map(model: Any, block: nn.Module, layer: int, name: str) -> nn.Linear:
    found = [
        module
        for path, module in block.named_modules()
        if path.rpartition(".")[2] in NAMES[name] and type(module) is nn.Linear
    ]
    if len(found) != 1:
        raise _refusal(model, layer, name)
    return found[0]


def _refusal(model: Any, layer: int, name: str) -> ModelError:
    return ModelError(
        f"the {name} of layer {layer} of {name_of(model)} is not a linear map of the hidden states "
        f"of layer {layer - 1} alone: store them as they are (query:layers={layer}, key, value)"
    )
