"""Recipes: a TOML file that says how a student is trained, with values that can be overridden.

[student]       where the student comes from: checkpoint, config or init_from_teacher; whether its
                upper half shares the parameters of the lower (shared = "shuffled"); a tokenizer
                of its own; which tokens it keeps (vocabulary = "corpus", a file or a number)
[losses.NAME]   one table per loss; NAME is its kind, or the table says kind = "..."; any number of
                it may be a schedule, { start, stop, shape, per, levels }
[training]      any field of transformers.TrainingArguments
[data]          the order of documents: group_by_length, window
[inputs]        what it reads in the place of its word embeddings: kind, and its options
[[stages]]      stages it goes through one after the other: name, losses, training, data, inputs,
                trainable, balance
trainable       globs over names of parameters, of the recipe or a stage
[balance]       how the weights of losses are set, of the recipe or a stage: by, shares, steps
[dev]           the documents its weights are chosen on: file, files or split, every, patience
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, did_you_mean, near, one_of, require_path
from kdcache.losses import Loss
from kdcache.losses.schedules import Schedules, is_on, weight_text
from kdcache.losses.teachers import Teaching
from kdcache.manifest import Json
from kdcache.records import make, parse_toml, read_toml, to_toml
from kdcache.training.balance import Balance, balance_of
from kdcache.training.data_order import DataOrder
from kdcache.training.dev_options import DevOptions, dev_table
from kdcache.training.inputs import ChosenInputs, inputs_of
from kdcache.training.loss_tables import losses_json, losses_of
from kdcache.training.overrides import SECTIONS, choose, override
from kdcache.training.stage import Stage, stages_of
from kdcache.training.student_table import student_table


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is trained.

    Attributes:
        description: what a student learns from; for people, as the two below it.
        paper: where it was published.
        needs: what a cache has to hold, in the words by which recipes are listed together.
        student: at most one of checkpoint, config and init_from_teacher; same_tokenizer, shared.
        losses: by name, with the numbers they start with; the objective is their weighted sum.
        schedules: of numbers of the losses, by the name of the loss and of the field. In a file
            they stand in the place of the number: { start = 4, stop = 1 }.
        teaching: who teaches a loss, by its name, where that is not the first teacher. In a file
            teachers, choose and probability stand in the loss's table.
        training: fields of transformers.TrainingArguments, checked when training starts.
        dev: how its weights are chosen; None: they are those of the last step. Of a recipe with
            stages, the last one chooses, and none of them trains on those documents.
        inputs: what it reads in the place of its word embeddings while it trains; None: these.
        trainable: globs over names of the student's parameters; others stay as they are. Empty:
            all are trained.
        balance: how the weights of the losses are set in the first steps; None: they are given.
        stages: what it goes through, one after the other; such a recipe has no losses of its own,
            and its [training], [data], [inputs], trainable and balance are those of every stage
            that has no other.
    """

    name: str
    description: str = ""
    paper: str = ""
    needs: str = ""
    student: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Loss]
    schedules: Schedules = field(default_factory=dict)
    teaching: Mapping[str, Teaching] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data: DataOrder = field(default_factory=DataOrder)
    dev: DevOptions | None = None
    inputs: ChosenInputs | None = None
    trainable: tuple[str, ...] = ()
    balance: Balance | None = None
    stages: tuple[Stage, ...] = ()
    layer: int = field(default=0, compare=False)
    below: float = field(default=1.0, compare=False)

    def to_json(self) -> Json:
        """The recipe as JSON values, every default spelled out."""
        dev = {} if self.dev is None else {"dev": asdict(self.dev)}
        return {
            "name": self.name,
            "description": self.description,
            "paper": self.paper,
            "needs": self.needs,
            "student": dict(self.student),
            "losses": losses_json(self.losses, self.schedules, self.teaching),
            "training": dict(self.training),
            "data": asdict(self.data),
            **({} if self.inputs is None else {"inputs": self.inputs.to_json()}),
            **({"trainable": list(self.trainable)} if self.trainable else {}),
            **({} if self.balance is None else {"balance": self.balance.to_json()}),
            **({"stages": [stage.to_json() for stage in self.stages]} if self.stages else {}),
            **dev,
        }

    def to_toml(self) -> str:
        """The recipe as a file that `load_recipe` reads back to an equal recipe."""
        return to_toml(self.to_json())

    def in_stages(self) -> tuple[Recipe, ...]:
        """A recipe of one stage for each of its stages; itself if it has none."""
        return tuple(map(self._of_stage, self.stages)) or (self,)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What settings of each of `in_stages` begin with: "" of a recipe without stages."""
        return tuple(stage.prefix for stage in self.stages) or ("",)

    def _of_stage(self, stage: Stage) -> Recipe:
        data = make(DataOrder, {**asdict(self.data), **stage.data}, f"stages.{stage.name}.data")
        return replace(
            self,
            losses=stage.losses,
            schedules=stage.schedules,
            teaching=stage.teaching,
            training={**self.training, **stage.training},
            data=data,
            inputs=stage.inputs or self.inputs,
            trainable=stage.trainable or self.trainable,
            layer=stage.layer,
            below=stage.below,
            balance=stage.balance or self.balance,
            stages=(),
        )

    @property
    def several(self) -> bool:
        """Whether it reads what others than the first teacher of a cache gave."""
        return any(
            one.teaching or one.inputs or (one.data.weighting and one.data.weighting.teacher)
            for one in self.in_stages()
        )

    def __repr__(self) -> str:
        if self.stages:
            names = ", then ".join(stage.name for stage in self.stages)
            return f"<Recipe {self.name}: stages {names}>"
        named = self.losses.items()
        losses = ", ".join(f"{weight_text(n, loss, self.schedules)} {n}" for n, loss in named)
        training = ", ".join(f"{key}={value}" for key, value in self.training.items())
        return f"<Recipe {self.name}: losses {losses}; {training}>"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with kdcache."""
    return sorted(
        path.name.removesuffix(".toml")
        for path in resources.files("kdcache").joinpath("recipes").iterdir()
        if path.name.endswith(".toml")
    )


def load_recipe(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    training: Mapping[str, str] | None = None,
    dev: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read a shipped recipe by name, or a file, and apply overrides such as "losses.kl.weight=2".

    The value of an override is read as TOML, and as text where it is not TOML. `training` are names
    people may use for fields of [training], and the fields: for suggestions only. `dev` are fields
    of [dev]; a file or a split among them takes the place of the recipe's.

    Raises ConfigError, with the nearest name, for an unknown recipe, field or choice.
    """
    table = recipe.to_json() if isinstance(recipe, Recipe) else _read(recipe)
    for setting in [overrides] if isinstance(overrides, str) else overrides:
        override(table, setting, training or {})
    if dev:
        choose(table, dev)
    return _recipe(table)


def _read(recipe: str | Path) -> Json:
    require_path("a recipe", recipe, "name or file")
    shipped = shipped_recipes()
    name = str(recipe)
    if name in shipped:
        text = resources.files("kdcache").joinpath("recipes", f"{name}.toml").read_text("utf-8")
        table = parse_toml(text, f"recipe {name}")
    elif Path(recipe).is_file():
        table = read_toml(Path(recipe), f"recipe {name}")
    elif name.endswith(".toml") or "/" in name:
        raise ConfigError(f"no recipe file {name}; shipped recipes: {', '.join(shipped)}")
    else:
        meant = did_you_mean(near(name, shipped))
        raise ConfigError(f"unknown recipe {name!r}{meant} (`kdcache recipes` lists them)")
    return {"name": Path(name).stem, **table}


def _recipe(table: Json) -> Recipe:
    table = copy.deepcopy(table)
    for key in table:
        one_of("recipe field", key, SECTIONS)
    for key in ("student", "losses", "training", "data", *(["dev"] if "dev" in table else [])):
        if not isinstance(table.setdefault(key, {}), dict):
            raise ConfigError(f"[{key}] of a recipe is a table; got {table[key]!r}")
    table["stages"] = stages_of(table.get("stages", []))
    if not table["stages"]:
        owner = f"recipe {table['name']}"
        table |= losses_of(table["losses"], owner)
    elif table["losses"]:
        name, stages = next(iter(table["losses"])), table["stages"]
        of = next((stage.name for stage in stages if name in stage.losses), stages[0].name)
        raise ConfigError(
            f"losses.{name} of recipe {table['name']} is of no stage, and it has stages: give it "
            f"to one of them, as stages.{of}.losses.{name}"
        )
    table["student"] = student_table(table["student"])
    table["data"] = make(DataOrder, table["data"], "data")
    if table.setdefault("dev") is not None:
        table["dev"] = make(DevOptions, dev_table(table["dev"]), "dev")
    table["balance"] = balance_of(table.get("balance"))
    table["inputs"] = inputs_of(table.get("inputs"))
    found = make(Recipe, table, "recipe")
    names = [f"stage {stage.name!r}" for stage in found.stages] or [f"recipe {found.name}"]
    for where, one in zip(names, found.in_stages(), strict=True):  # which checks what they change
        if one.balance is not None:
            on = {n: loss for n, loss in one.losses.items() if is_on(n, loss, one.schedules)}
            one.balance.check(on, one.schedules, where)
    return found
