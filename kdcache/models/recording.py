"""Keeping what passes through the parts of a model while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch

from kdcache.errors import ModelError
from kdcache.plans.batch import Batch
from kdcache.signals import Tap

Taps = Collection[Tap]
Record = Callable[[Any, Taps], AbstractContextManager[Any]]
"""What keeps values while a model runs: it is given the model and the taps that are asked for."""
Found = Mapping[int | None, torch.Tensor]
"""The values of a tap by layer; None: it has no layers."""


class Forward(NamedTuple):
    """What one forward has left to read taps from.

    `model` is the transformers model, `out` what it returned, `rows` the task's rows among B * L
    (None: one per document), `recorded` what was recorded, `batch` what it read. `again` runs the
    model once more. With `graph`, what is read has a gradient.
    """

    model: Any
    out: Any
    rows: torch.Tensor | None
    recorded: Mapping[Record, Any]
    batch: Batch
    again: Callable[[], Any]
    graph: bool


def unwrapped(model: Any) -> Any:
    """The transformers model inside all that wraps one; of several heads, the active one."""
    inner = inside(model)
    return getattr(inner, "active_head", inner)


def inside(model: Any) -> Any:
    """What lies in DistributedDataParallel and in what torch.compile makes."""
    for name in ("_orig_mod", "module", "_orig_mod"):
        model = getattr(model, name, model)
    return model


def members_of(model: Any) -> list[Any]:
    """The students that are trained as one model; of any other, that alone."""
    return list(getattr(unwrapped(model), "members", None) or [model])


def heads_of(model: Any) -> list[Any]:
    """The models of one encoder that are trained as one, a head each; of any other, that alone."""
    return list(getattr(inside(model), "task_heads", None) or [model])


def choose_head(model: Any, number: int) -> None:
    """Let a model of several heads run that one."""
    if hasattr(inside(model), "active_head"):
        inside(model).turn = number


def autocast_of(kind: str) -> torch.dtype | None:
    """The dtype that autocast makes of products on a type of device now; None: it is off."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def name_of(model: Any) -> str:
    """The class of a transformers model, for messages."""
    return type(unwrapped(model)).__name__


def states_of(forward: Forward) -> list[torch.Tensor]:
    """The hidden states a model tells of: those of its encoder, if it has a decoder besides."""
    for name in ("hidden_states", "encoder_hidden_states"):
        states = getattr(forward.out, name, None)
        if states is not None:
            return list(states)
    raise ModelError(
        f"{name_of(forward.model)} tells of no hidden states: leave out the signal "
        "or the loss that reads them"
    )


def is_compiled(model: Any) -> bool:
    """Whether torch.compile has compiled a model, or a part of it: it may run past every hook."""
    if "torch._dynamo" not in sys.modules:
        return False  # nothing is compiled in a process without the compiler
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in model.modules()
    )


def require_plain(model: Any, what: str) -> None:
    """Raise ModelError for a model that torch.compile has compiled."""
    if is_compiled(model):
        raise ModelError(
            f"{what} cannot be read out of a model that torch.compile has compiled: leave "
            "training.torch_compile out, or the signal or loss that reads it"
        )


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Let an attribute of an object be something else for a time."""
    own = vars(thing)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)
