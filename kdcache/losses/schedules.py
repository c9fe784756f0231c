"""Numbers of losses that change while a student trains. SCHEDULES is the table of their shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from kdcache.errors import ConfigError, one_of
from kdcache.losses.base import Loss

Changed = TypeVar("Changed")

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "step": lambda x: float(x >= 0.5),
}
"""Every shape: the share of a stage that is over, in [0, 1] -> the share of the way from start to
stop, in [0, 1]."""

PER = ("step", "epoch")
SAMPLES = 33  # places a schedule without levels is looked at to know its values


class Moment(NamedTuple):
    """Where a stage stands: steps and epochs begun, from 0, and how many it has."""

    step: int
    steps: int
    epoch: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number that goes from `start` to `stop` over a stage.

    The first step (or epoch) has `start` and the last `stop`, as in the temperature of AD-KD
    (arXiv:2305.10010). With `levels`, the stage is cut into as many parts of one length, and the
    number stays in each of them, as in the scale of Annealing-KD (arXiv:2104.07163).

    Attributes:
        shape: a name of SCHEDULES: "linear", "cosine", or "step", which jumps in the middle.
        per: what it changes with: "step" or "epoch".
        until: the share of the stage after which it stays at `stop`.
        levels: how many values it takes; 0: one for every step, or epoch.
    """

    start: float
    stop: float
    shape: str = "linear"
    per: str = "step"
    levels: int = 0
    until: float = 1.0

    def __post_init__(self) -> None:
        one_of("shape of a schedule", self.shape, SCHEDULES)
        one_of("per of a schedule", self.per, PER)
        if not (math.isfinite(self.start) and math.isfinite(self.stop)):
            raise ConfigError(
                f"a schedule goes between finite numbers; got start={self.start}, stop={self.stop}"
            )
        if self.levels != 0 and self.levels < 2:
            raise ConfigError(
                f"levels of a schedule is 2 or more, or 0 for as many as steps; got {self.levels}"
            )

        if not 0 < self.until <= 1:
            raise ConfigError(
                "until of a schedule is a share of the stage, above 0 and 1 at most; got "
                f"{self.until}"
            )

    def at(self, moment: Moment) -> float:
        """The number at that step, or in that epoch."""
        done, whole = moment[:2] if self.per == "step" else moment[2:]
        of = max(1, math.ceil(whole * self.until))
        levels = min(self.levels or of, of)
        level = min(done, of - 1) * levels // of
        return self._value(level / (levels - 1) if levels > 1 else 0.0)

    def values(self) -> tuple[float, ...]:
        """The numbers it takes, in turn: of one without levels, a good many of them."""
        last = (self.levels or SAMPLES) - 1
        return tuple(dict.fromkeys(self._value(level / last) for level in range(last + 1)))

    def _value(self, share: float) -> float:
        way = SCHEDULES[self.shape](share)
        return self.start * (1 - way) + self.stop * way  # exact at both ends

    def __str__(self) -> str:
        return f"{self.start:g} to {self.stop:g}"


Schedules = Mapping[str, Mapping[str, Schedule]]
"""Schedules by the name of the loss and of the field that they are for."""


def numbers(loss: Any, values: Mapping[str, float]) -> Any:
    """The loss with other numbers; ConfigError if it refuses one of them."""
    return dataclasses.replace(loss, **values)


def moments(loss: Changed, schedules: Mapping[str, Schedule]) -> list[Changed]:
    """A loss, or what else has numbers, with every value that each of its schedules takes, in turn;
    itself without any.
    """
    return [
        numbers(loss, {field: value})
        for field, schedule in schedules.items()
        for value in schedule.values()
    ] or [loss]


def is_on(name: str, loss: Loss, schedules: Schedules) -> bool:
    """Whether a loss has a weight above 0 at any time."""
    schedule = schedules.get(name, {}).get("weight")
    weights = (loss.weight,) if schedule is None else schedule.values()
    return any(weight > 0 for weight in weights)


def weight_text(name: str, loss: Loss, schedules: Schedules) -> str:
    """The weight of a loss in words: "0.5", or "0 to 1"."""
    schedule = schedules.get(name, {}).get("weight")
    return f"{loss.weight:g}" if schedule is None else str(schedule)
