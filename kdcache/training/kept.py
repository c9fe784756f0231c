"""What a loss keeps from step to step, and what it learns beside the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.losses import CacheSpec
from kdcache.losses.bound import BoundLoss
from kdcache.signals import ModelSizes


class LossState(nn.Module):
    """What a loss keeps between steps, as buffers: a checkpoint holds them, a device gets them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone())

    def now(self) -> dict[str, torch.Tensor]:
        """Copies, which a graph may hold while the tensors go on."""
        return {name: buffer.clone() for name, buffer in self.named_buffers()}

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what a loss has made of them."""
        for name, buffer in self.named_buffers():
            buffer.copy_(state[name].detach())


def first_state(
    one: BoundLoss, student: ModelSizes, cache: CacheSpec
) -> Mapping[str, torch.Tensor] | None:
    """What a loss keeps between steps, before the first; None if it keeps nothing."""
    loss: Any = one.loss
    if not (hasattr(loss, "remembered") or hasattr(loss, "state")):
        return None
    _require_one(one)
    if hasattr(loss, "remembered"):
        found: Mapping[str, torch.Tensor] = loss.remembered(cache.documents)
        return found
    first: Mapping[str, torch.Tensor] = loss.state(student, *(_sizes(one) or (cache.shape,)))
    return first


def own_module(one: BoundLoss, student: ModelSizes) -> nn.Module | None:
    """What a loss learns beside the student; ConfigError where several teachers would share it."""
    make = getattr(one.loss, "learned", None)
    if make is None:
        return None
    _require_one(one)
    made: nn.Module = make(student, *_sizes(one))
    return made


def _sizes(one: BoundLoss) -> tuple[ModelSizes, ...]:
    """Those of each of its teachers."""
    return tuple(matches[0].source.shape for matches in one.taught.values() if matches)


def _require_one(one: BoundLoss) -> None:
    """ConfigError where several teachers would share what a loss learns or keeps, unless it takes
    them together.
    """
    if len(one.taught) > 1 and not hasattr(one.loss, "together"):
        raise ConfigError(
            f"losses.{one.name} learns from one teacher; {len(one.taught)} are named: make it one "
            "loss for each, with teachers = [NAME]"
        )
