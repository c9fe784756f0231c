"""What a model's first block reads, its embedding output, and what may stand in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kdcache.errors import ModelError
from kdcache.models.recording import name_of


class FirstRead:
    """What the first block of a model reads when it first runs.

    Attributes:
        states: [B, L, H]; None: it has not run yet.
    """

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.states: torch.Tensor | None = None
        self._change = change

    def __call__(self, _block: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if self.states is not None:
            return None  # ALBERT runs one block again and again
        name = next(iter(given), "")
        self.states = self._change(args[0] if args else given[name])
        return ((self.states, *args[1:]), given) if args else (args, {**given, name: self.states})


@contextmanager
def first_read(
    model: Any, change: Callable[[torch.Tensor], torch.Tensor], *, without: str
) -> Iterator[FirstRead]:
    """Let the first block read what `change` makes of the embedding output, and keep that.

    Raises ModelError for a model that has no list of blocks; the message ends with `without`.
    """
    blocks = next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)), None)
    if blocks is None:
        raise ModelError(f"{name_of(model)} has no list of blocks{without}")
    seen = FirstRead(change)
    handle = blocks[0].register_forward_pre_hook(seen, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
