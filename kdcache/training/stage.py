"""A stage of a recipe: what a student learns from for a time, and what it is trained with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from kdcache.errors import ConfigError, one_of, saying
from kdcache.losses.schedules import Schedules
from kdcache.losses.teachers import Teaching
from kdcache.manifest import Json
from kdcache.records import make
from kdcache.training.balance import Balance, balance_of
from kdcache.training.inputs import ChosenInputs, inputs_of
from kdcache.training.loss_tables import Losses, losses_json, losses_of

FIELDS = (
    "name",
    "losses",
    "training",
    "data",
    "inputs",
    "trainable",
    "balance",
    "progressive",
    "layer",
    "below",
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the stages that a student goes through, one after the other.

    Attributes:
        name: letters, digits, "_" and "-"; its folder and its fields go under it.
        losses: by name, with the numbers they start with.
        schedules: of numbers of the losses, over the stage.
        teaching: who teaches a loss, by its name, where that is not the first teacher.
        training: fields of [training] that are others than the recipe's.
        data: fields of [data] that are others than the recipe's.
        inputs: what it reads in the place of its word embeddings; None: as the recipe says.
        trainable: globs over names of parameters; the others stay as they are. Empty: the recipe's.
        balance: how the weights of its losses are set; None: as the recipe says.
        progressive: it stands for a stage for each layer of the student, the lowest first, that has
            the layer's pairs of the losses' layer maps.
        layer: the block that is trained, 1 the lowest, with the embeddings; 0: all of the student.
        below: what the learning rate is multiplied by below that block; 0: nothing moves there.
        of: the progressive stage that it stands for a layer of; "": none.
    """

    name: str
    losses: Losses
    schedules: Schedules = field(default_factory=dict)
    teaching: Mapping[str, Teaching] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    inputs: ChosenInputs | None = None
    trainable: tuple[str, ...] = ()
    balance: Balance | None = None
    progressive: bool = False
    layer: int = 0
    below: float = 1.0
    of: str = field(default="", compare=False)

    @property
    def prefix(self) -> str:
        """What its settings begin with."""
        return f"stages.{self.of or self.name}."

    def __post_init__(self) -> None:
        if self.layer < 0 or not (0 <= self.below <= 1):
            raise ConfigError(
                f"stages.{self.name}: layer is 0 or more, and below from 0 to 1; got "
                f"layer={self.layer}, below={self.below:g}"
            )
        if self.below != 1 and not (self.layer or self.progressive):
            raise ConfigError(
                f"stages.{self.name}.below is of a stage that trains one layer: set "
                "progressive=true or a layer, or leave it out"
            )

    def to_json(self) -> Json:
        """The stage as JSON values."""
        own = {"progressive": self.progressive, "layer": self.layer, "below": self.below}
        return {
            "name": self.name,
            "losses": losses_json(self.losses, self.schedules, self.teaching),
            "training": dict(self.training),
            "data": dict(self.data),
            "trainable": list(self.trainable),
            **(own if self.progressive or self.layer else {}),
            **({} if self.inputs is None else {"inputs": self.inputs.to_json()}),
            **({} if self.balance is None else {"balance": self.balance.to_json()}),
        }


def stages_of(tables: Any) -> tuple[Stage, ...]:
    """The stages of a recipe; ConfigError for one without a loss, and for two of one name."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"stages of a recipe are tables [[stages]]; got {tables!r}")
    found = tuple(_stage(table, number) for number, table in enumerate(tables, 1))
    names = [stage.name for stage in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"two stages of a recipe are called {twice[0]!r}: give each its own name")
    return found


def _stage(table: Json, number: int) -> Stage:
    for key in table:
        one_of(f"field of stage {number}", key, FIELDS)
    name = table.get("name", "")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(
            f"stage {number} of a recipe needs a name of letters, digits, '_' and '-', such as "
            f'name = "hidden"; got {name!r}'
        )
    for key in ("training", "data"):
        if not isinstance(table.get(key, {}), dict):
            raise ConfigError(f"[stages.{key}] of a recipe is a table; got {table[key]!r}")
    prefix = f"stages.{name}."
    read = losses_of(table.get("losses", {}), f"stage {name!r}", prefix)
    balance = balance_of(table.get("balance"), f"{prefix}balance")
    own = {"balance": balance, "inputs": inputs_of(table.get("inputs"), f"{prefix}inputs")}
    return make(Stage, {**table, **read, **own}, f"stages.{name}")


def of_stage(prefix: str, losses: Losses) -> AbstractContextManager[None]:
    """Let a refusal call losses what `--set` does: `prefix` is such as "stages.hidden."."""
    named = re.compile(rf"(?<![\w./-])losses\.(?=(?:{'|'.join(losses)})\b)")
    return saying(lambda text: named.sub(f"{prefix}losses.", text))


def stage_table(tables: Any, name: str) -> Json:
    """The table of the stage that an override names."""
    known = {str(table.get("name")): table for table in plain_stages(tables)}
    found: Json = known[one_of("stage", name, known)]
    return found


def plain_stages(tables: Any) -> list[Json]:
    """The tables among what may be anything: a file is not checked yet."""
    return [one for one in tables if isinstance(one, dict)] if isinstance(tables, list) else []


def require_reached(stages: Sequence[Json], path: Sequence[str], flag: str) -> None:
    """Raise ConfigError where a stage has its own value of what is set for all of them.

    `path` is of the whole recipe: ("training", "learning_rate"), ("data", ...), ("trainable",).
    """
    for stage in stages:
        own: Any = stage
        for part in path[:2]:
            own = own.get(part) if isinstance(own, dict) else None
        if own not in (None, [], {}):
            name, field_ = stage.get("name"), ".".join(path[:2])
            raise ConfigError(
                f"{flag} sets {field_} of all stages, and stage {name!r} has its own: set that "
                f"one, --set stages.{name}.{field_}=..."
            )
