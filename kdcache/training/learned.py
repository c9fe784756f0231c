"""What losses learn beside the student: linear maps, and layers of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.losses.binding import learned_maps
from kdcache.losses.bound import BoundLoss
from kdcache.signals import ModelSizes
from kdcache.training.kept import own_module


class Learned:
    """Maps from a student's width to the teacher's, and modules of losses under their names.

    Attributes:
        modules: all of them, by name.
        losses: names of the losses that learn a module.

    Raises:
        ConfigError: students that are trained together would share one, or two losses would.
    """

    def __init__(self, bound: Mapping[str, BoundLoss], student: ModelSizes) -> None:
        own = {name: own_module(one, student) for name, one in bound.items()}
        modules = {name: module for name, module in own.items() if module is not None}
        maps = learned_maps(bound, modules)
        if student.peers and modules:
            raise ConfigError(
                f"losses.{min(modules)} learns a layer of its own, which students that are trained "
                "together would share: leave it out, or train one student"
            )
        if student.peers and maps:
            raise ConfigError(
                f"a loss learns a map ({min(maps)}), which students that are trained together "
                "would share: leave it out, or make the students as wide as the teacher"
            )
        widths = {
            name: (
                student.width(match.student.name, match.student.layer),
                match.source.shape.width(match.teacher.name),
            )
            for name, match in maps.items()
        }
        linear = {name: nn.Linear(*widths[name]) for name in sorted(widths)}
        self.losses = modules.keys()
        self.modules = nn.ModuleDict(linear | modules)
        self._applied: set[str] = set()

    def begin(self) -> None:
        """Begin a batch, of which nothing has been applied yet."""
        self._applied.clear()

    def of(self, loss: str) -> nn.Module | None:
        """The module that a loss learns, if it does."""
        return self.modules[loss] if loss in self.losses else None

    def use(self, loss: str) -> None:
        """Note that a loss is worked out, and its module with it."""
        self._applied |= self.losses & {loss}

    def project(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """The rows through a map."""
        self._applied.add(name)
        linear: Any = self.modules[name]
        projected: torch.Tensor = linear(rows.to(linear.weight.dtype))  # autocast's are smaller
        return projected

    def idle(self) -> list[torch.Tensor]:
        """Zeros that depend on the maps of teachers that were not chosen: DDP waits for a gradient
        of every parameter, and any number of ranks steps alike.
        """
        idle = [linear for name, linear in self.modules.items() if name not in self._applied]
        return [0.0 * value.sum() for linear in idle for value in linear.parameters()]
