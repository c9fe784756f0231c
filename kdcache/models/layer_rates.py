"""A student of which one layer is trained, those below it slowly or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from kdcache.models.blocks import blocks_of

Slowed = dict[torch.nn.Parameter, float]
"""Parameters with a factor on the learning rate."""


@contextmanager
def one_layer_trained(student: Any, layer: int, below: float) -> Iterator[Slowed]:
    """Leave what lies above a block, 1 the first, as it is meanwhile; give what has another rate.

    Embeddings and the blocks below go at the rate times `below`, and stay as they are for 0. The
    embeddings belong to the first block. With layer 0 all of the student is trained.

    Raises ModelError for a student whose blocks are not in one list.
    """
    slowed: Slowed = {}
    frozen = []
    for parameter, place in _places(student, layer):
        if place > layer or (place < layer and below == 0):
            frozen.append(parameter)
        elif place < layer:
            slowed[parameter] = below
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield slowed
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def at_rates(groups: Sequence[dict[str, Any]], slowed: Slowed) -> Iterator[dict[str, Any]]:
    """Groups of an optimizer with a group for every rate: those at the whole rate come first."""
    for rate in sorted({1.0, *slowed.values()}, reverse=True):
        for group in groups:
            own = [one for one in group["params"] if slowed.get(one, 1.0) == rate]
            if own:
                yield {**group, "params": own, "lr": group["lr"] * rate}


def _places(student: Any, layer: int) -> Iterator[tuple[torch.nn.Parameter, int]]:
    """Every trained parameter with the number of its block: 1 for embeddings, and one beyond the
    last for what reads the blocks.
    """
    if layer == 0:
        return
    prefix, blocks = blocks_of(student)
    block = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    embeddings = _embeddings(student)
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        found = block.match(name)
        if found:
            yield parameter, int(found[1]) + 1
        else:
            yield parameter, 1 if parameter in embeddings else len(blocks) + 1


def _embeddings(student: Any) -> set[torch.nn.Parameter]:
    """Parameters of the module that holds the word embeddings; of these alone where that is all
    of the encoder.
    """
    words = student.get_input_embeddings()
    (name,) = (name for name, module in student.named_modules() if module is words)
    parent = student.get_submodule(name.rpartition(".")[0])
    return set((words if parent in (student, student.base_model) else parent).parameters())
