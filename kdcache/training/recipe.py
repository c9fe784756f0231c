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
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from kdcache.errors import SUGGESTED, ConfigError, did_you_mean, near, one_of, require_path
from kdcache.inputs import INPUTS
from kdcache.losses import LOSSES, Loss
from kdcache.losses.schedules import Schedules, is_on, weight_text
from kdcache.losses.teachers import Teaching
from kdcache.manifest import Json
from kdcache.models.sharing import SHARED
from kdcache.models.student import WAYS
from kdcache.records import make, parse_toml, read_toml, settings_of, to_toml
from kdcache.training.balance import Balance, balance_of
from kdcache.training.data_order import DataOrder
from kdcache.training.dev_options import DevOptions, dev_table
from kdcache.training.inputs import ChosenInputs, inputs_of
from kdcache.training.loss_tables import losses_json, losses_of
from kdcache.training.stage import Stage, plain_stages, require_reached, stage_table, stages_of
from kdcache.training.vocabulary import vocabulary_of

SECTIONS = (
    "name",
    "description",
    "paper",
    "student",
    "losses",
    "training",
    "data",
    "dev",
    "inputs",
    "trainable",
    "balance",
    "stages",
)
OF_STAGES = ("training", "data", "inputs", "trainable", "balance")  # a stage may have its own
DEV_SETS = {"file", "files", "split"}  # fields of [dev], of which a call names another
OPTIONS = (
    "same_tokenizer",
    "shared",
    "tokenizer",
    "vocabulary",
)  # what is said of a student beside where it comes from
KEPT = ("shared", "tokenizer", "vocabulary")  # those that stay where another student is named
STUDENT = (*WAYS, *OPTIONS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is trained.

    Attributes:
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
    for override in [overrides] if isinstance(overrides, str) else overrides:
        _override(table, override, training or {})
    if dev:
        _choose(table, dev)
    return _recipe(table)


def _choose(table: Json, given: Mapping[str, Any]) -> None:
    known = table.get("dev", {})
    if isinstance(known, dict):
        sources = DEV_SETS if given.keys() & DEV_SETS else set()
        table["dev"] = {k: v for k, v in known.items() if k not in sources} | dict(given)


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


def _override(table: Json, override: str, training: Mapping[str, str]) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        shown = f"{override[:60]}..." if len(override) > 60 else override
        raise ConfigError(f"an override is KEY=VALUE, as in losses.kl.weight=2; got {shown!r}")
    if path[0] not in SECTIONS:
        raise ConfigError(_unknown_key(key.strip(), table, training))
    if path[0] == "student" and path[1:] not in ([option] for option in OPTIONS):
        known = table.get("student")
        kept = known.items() if isinstance(known, dict) else ()
        table["student"] = {key: value for key, value in kept if key in KEPT}
    inner = table
    if path[0] in OF_STAGES:
        require_reached(plain_stages(table.get("stages")), path, f"--set {override}")
    if path[0] == "stages" and len(path) > 2:
        inner, path = stage_table(table.get("stages"), path[1]), path[2:]
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} of the recipe is no table")
    inner[path[-1]] = value_of_text(text.strip())


def value_of_text(text: str) -> Any:
    """Text as a TOML value; dates and anything that is not TOML stay text."""
    if text in ("True", "False"):
        return text == "True"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text


def _unknown_key(key: str, table: Json, training: Mapping[str, str]) -> str:
    known = {name: [f"training.{meant}"] for name, meant in training.items()}
    for path in _settable(table):
        known.setdefault(path.rpartition(".")[2], []).append(path)
    last = key.rpartition(".")[2]
    names = [last] if last in known else near(last, known)
    paths = [path for name in names for path in known[name]]
    return (
        f"unknown recipe field {key!r}{did_you_mean(dict.fromkeys(paths[:SUGGESTED]))} (fields are "
        "student.*, losses.NAME.*, data.*, dev.* and, for everything of "
        "transformers.TrainingArguments, training.*)"
    )


def _settable(table: Json) -> Iterator[str]:
    """Every field of a recipe by its path, those of [training] apart: it has too many."""
    yield from (f"student.{name}" for name in STUDENT)
    yield from (f"data.{name}" for name in settings_of(DataOrder))
    yield from (f"dev.{name}" for name in settings_of(DevOptions))
    yield from ("balance", *(f"balance.{name}" for name in settings_of(Balance)))
    yield from _of_losses(table, "")
    for stage in plain_stages(table.get("stages")):
        yield from _of_losses(stage, f"stages.{stage.get('name')}.")
    yield from ("inputs", "inputs.kind")
    yield from (f"inputs.{name}" for way in INPUTS.values() for name in settings_of(way))


def _of_losses(table: Json, prefix: str) -> Iterator[str]:
    losses = table.get("losses", {})
    for name, values in losses.items() if isinstance(losses, dict) else ():
        kind = LOSSES.get(str(values.get("kind", name))) if isinstance(values, dict) else None
        if kind is not None:
            fields_of = {**settings_of(kind), **settings_of(Teaching)}
            yield from (f"{prefix}losses.{name}.{entry}" for entry in fields_of)


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
        name, first = next(iter(table["losses"])), table["stages"][0].name
        raise ConfigError(
            f"losses.{name} of recipe {table['name']} is of no stage, and it has stages: give it "
            f"to one of them, as stages.{first}.losses.{name}"
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


def student_table(values: Json) -> Json:
    """A [student] table as it is kept; ConfigError for a field or layers that make no sense."""
    for key in values:
        one_of("field of student", key, STUDENT)
    same = values.get("same_tokenizer", False)
    if not isinstance(same, bool):
        raise ConfigError(f"student.same_tokenizer must be true or false; got {same!r}")
    tokenizer = values.get("tokenizer", "")
    if not isinstance(tokenizer, str):
        raise ConfigError(f"student.tokenizer is a folder or hub name; got {tokenizer!r}")
    if values.get("vocabulary") not in (None, ""):
        values["vocabulary"] = vocabulary_of(values["vocabulary"])
        if tokenizer:
            raise ConfigError(
                "student.vocabulary keeps tokens of the teacher's, and student.tokenizer has "
                "others: leave one of the two out"
            )
    embeddings = "embeddings=teacher" in str(values.get("built", ""))
    if tokenizer and (embeddings or values.get("init_from_teacher") is not None):
        raise ConfigError(
            "a student that starts from the teacher's embeddings has its tokens: choose a "
            "checkpoint or a configuration (--student, --config), or leave student.tokenizer out"
        )
    if values.get("shared"):
        one_of("way to share parameters (student.shared)", values["shared"], SHARED)
    several = values.get("together")
    if several is not None and not (
        isinstance(several, list) and len(several) > 1 and all(type(s) is str for s in several)
    ):
        raise ConfigError(
            'student.together is a list of two students or more, such as ["bilstm", "static"]; '
            f"got {several!r}"
        )
    layers = values.get("init_from_teacher")
    if layers is not None:
        parts = layers.split("-") if isinstance(layers, str) else layers
        try:
            values["init_from_teacher"] = [int(layer) for layer in parts]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"student.init_from_teacher is a list of teacher layers such as [2, 4, 6]; "
                f"got {layers!r}"
            ) from error
    return values
