"""What has no part in a step of one cache, where a student learns from several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from kdcache.models.heads import HeadsModel
from kdcache.training.objective import Objective


def idle_parameters(
    model: torch.nn.Module, objectives: Sequence[Objective], turn: int
) -> list[torch.nn.Parameter]:
    """What is trained and has no part in a step of a cache: heads and maps of other caches."""
    maps = {id(p): p for one in objectives for p in one.projections.parameters()}
    own = {id(parameter) for parameter in objectives[turn].projections.parameters()}
    others = [parameter for key, parameter in maps.items() if key not in own]
    heads = model.idle(turn) if isinstance(model, HeadsModel) else []
    return [parameter for parameter in (*heads, *others) if parameter.requires_grad]


class LeaveIdle(transformers.TrainerCallback):
    """Leaves what had no part in a step as it is, momentum and weight decay included.

    Under DDP, which waits for a gradient of every parameter, it has one of zeros.
    """

    def __init__(self, idle: Callable[[], Sequence[torch.nn.Parameter]]) -> None:
        self.idle = idle

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in self.idle():
            parameter.grad = None
