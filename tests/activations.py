"""Activations of a model, or made by hand of tensors that no model computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kdcache.models import run
from kdcache.plans.batch import Batch
from kdcache.signals import HEAD, LOGITS, Activations, Head, Tap


class Outputs(Activations):
    """Activations of logits and hidden states by a shorter name."""

    @property
    def logits(self) -> torch.Tensor:
        return self[LOGITS]

    @property
    def hidden(self) -> list[torch.Tensor]:
        return self.layers("hidden")


def activations(
    *,
    mask: torch.Tensor,
    logits: torch.Tensor | None = None,
    hidden: Sequence[torch.Tensor] = (),
    selected: torch.Tensor | None = None,
    head: Head | None = None,
) -> Outputs:
    """Activations of logits and hidden states, the embedding output first, or of a head."""
    values = {Tap("hidden", layer): states for layer, states in enumerate(hidden)}
    values |= {} if logits is None else {LOGITS: logits}
    values |= {} if head is None else {HEAD: head.hidden}
    return Outputs(values=values, mask=mask, selected=selected, head=head)


def say(model: Any, task: str, batch: Batch, *, hidden: bool = False, head: Any = None) -> Outputs:
    """The logits of a batch, or with a `head` what that reads, and all hidden states."""
    taps = [LOGITS if head is None else HEAD, *([Tap("hidden")] if hidden else [])]
    return Outputs(**vars(run(model, batch, taps, task=task)))
