"""What a teacher is taught with, and which of it can be asked for at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.tasks import TASKS, Task, as_task

ClassWeights = Literal["auto", "balanced", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `teach`: see there."""

    epochs: int = 4
    learning_rates: tuple[float, ...] = (5e-5, 2e-4)
    dev_split: float = 0.1
    class_weights: ClassWeights = "auto"
    batch_size: int = 32
    max_length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be 1 or more (--{name.replace('_', '-')}); "
                    f"got {getattr(self, name)}"
                )
        if not self.learning_rates:
            raise ConfigError("no learning rate to try: name one or more, as in --lr 5e-5,2e-4")
        for rate in self.learning_rates:
            if not 0 < rate < math.inf:
                raise ConfigError(f"a learning rate is more than 0 and finite (--lr); got {rate}")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ConfigError(f"a learning rate is named twice (--lr): {self.learning_rates}")
        if not 0 < self.dev_split < 1:
            raise ConfigError(
                "the share of documents to choose on lies between 0 and 1, as in --dev-split 0.1; "
                f"got {self.dev_split}"
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be 0 to 2^32 - 1 (--seed); got {self.seed}")
        one_of("class weights", self.class_weights, get_args(ClassWeights))

    def to_json(self) -> Json:
        """The settings as JSON values."""
        return {**asdict(self), "learning_rates": list(self.learning_rates)}


def rates_of(rates: float | Sequence[float]) -> tuple[float, ...]:
    """Learning rates as they are given: several, or one alone."""
    return tuple(map(float, rates)) if isinstance(rates, Sequence) else (float(rates),)


def require_taught(name: str | Task) -> Task:
    """The task of a name; ConfigError for one whose models are not made here."""
    task = as_task(name)
    able = " and ".join(known.name for known in TASKS.values() if known.taught)
    if task.labelled and not task.taught:
        raise ConfigError(
            f"teach is for --task {able}: train a teacher for {task} with transformers, and give "
            "it to `kdcache build --teacher`"
        )
    if not task.taught:
        raise ConfigError(
            f"a language model needs no labels: for {task} give it to `kdcache build --teacher` as "
            f"it is; teach is for --task {able}, values (regression) among them"
        )
    return task
