"""Recipes: a TOML file that says how a student is trained, with values that can be overridden.

[student]       where the student comes from: checkpoint, config or init_from_teacher
[losses.NAME]   one table per loss; NAME is its kind, or the table says kind = "..."; any number of
                it may be a schedule, { start, stop, shape, per, levels }
[training]      any field of transformers.TrainingArguments
[data]          the order of documents: group_by_length, window
[dev]           the documents its weights are chosen on: file or split, every, patience
"""

from __future__ import annotations

import copy
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from kdcache.errors import SUGGESTED, ConfigError, did_you_mean, near, one_of, require_path
from kdcache.losses import LOSSES, Loss, Schedule
from kdcache.losses.schedules import Schedules, moments, weight_text
from kdcache.losses.teachers import Teaching
from kdcache.manifest import Json
from kdcache.models.student import WAYS
from kdcache.records import make, parse_toml, read_toml, settings_of, to_toml
from kdcache.training.dev_options import DevOptions, dev_table

SECTIONS = ("name", "description", "paper", "student", "losses", "training", "data", "dev")
STUDENT = (*WAYS, "same_tokenizer")


@dataclass(frozen=True, kw_only=True)
class DataOrder:
    """Order of the documents of an epoch.

    Attributes:
        group_by_length: put documents of like length into a batch, so that it needs little padding.
        window: batches among which documents are sorted by length.
        split_pairs: let a loss that compares the documents of a batch with each other see those of
            a micro-batch alone, where a step is cut into several or dealt out to ranks.
    """

    group_by_length: bool = False
    window: int = 50
    split_pairs: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"data.window must be 1 or more; got {self.window}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is trained.

    Attributes:
        student: at most one of checkpoint, config and init_from_teacher; same_tokenizer.
        losses: by name, with the numbers they start with; the objective is their weighted sum.
        schedules: of numbers of the losses, by the name of the loss and of the field. In a file
            they stand in the place of the number: { start = 4, stop = 1 }.
        teaching: who teaches a loss, by its name, where that is not the first teacher. In a file
            teachers, choose and probability stand in the loss's table.
        training: fields of transformers.TrainingArguments, checked when training starts.
        dev: how its weights are chosen; None: they are those of the last step.
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

    def to_json(self) -> Json:
        """The recipe as JSON values, every default spelled out."""
        losses = {}
        for name, loss in self.losses.items():
            kind = {} if name == loss.kind else {"kind": loss.kind}
            changing = {n: asdict(s) for n, s in self.schedules.get(name, {}).items()}
            told = asdict(self.teaching[name]) if name in self.teaching else {}
            losses[name] = kind | asdict(typing.cast(Any, loss)) | changing | told
        dev = {} if self.dev is None else {"dev": asdict(self.dev)}
        return {
            "name": self.name,
            "description": self.description,
            "paper": self.paper,
            "student": dict(self.student),
            "losses": losses,
            "training": dict(self.training),
            "data": asdict(self.data),
            **dev,
        }

    def to_toml(self) -> str:
        """The recipe as a file that `load_recipe` reads back to an equal recipe."""
        return to_toml(self.to_json())

    def __repr__(self) -> str:
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
        sources = {"file", "split"} if given.keys() & {"file", "split"} else set()
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
        one_of("recipe", name, shipped)
        raise AssertionError(name)
    return {"name": Path(name).stem, **table}


def _override(table: Json, override: str, training: Mapping[str, str]) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        shown = f"{override[:60]}..." if len(override) > 60 else override
        raise ConfigError(f"an override is KEY=VALUE, as in losses.kl.weight=2; got {shown!r}")
    if path[0] not in SECTIONS:
        raise ConfigError(_unknown_key(key.strip(), table, training))
    if path[0] == "student" and path[1:] != ["same_tokenizer"]:
        table["student"] = {}
    inner = table
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} of the recipe is no table")
    inner[path[-1]] = _value(text.strip())


def _value(text: str) -> Any:
    """Text as a TOML value; dates and anything that is not TOML stay text."""
    if text in ("True", "False"):
        return text == "True"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text


def _unknown_key(key: str, table: Json, training: Mapping[str, str]) -> str:
    known: dict[str, list[str]] = {}
    for path in _settable(table):
        known.setdefault(path.rpartition(".")[2], []).append(path)
    for name, meant in training.items():
        known.setdefault(name, []).append(f"training.{meant}")
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
    for name, values in table.get("losses", {}).items():
        kind = LOSSES.get(values.get("kind", name)) if isinstance(values, dict) else None
        if kind is not None:
            fields_of = {**settings_of(kind), **settings_of(Teaching)}
            yield from (f"losses.{name}.{entry}" for entry in fields_of)


def _recipe(table: Json) -> Recipe:
    table = copy.deepcopy(table)
    for key in table:
        one_of("recipe field", key, SECTIONS)
    for key in ("student", "losses", "training", "data", *(["dev"] if "dev" in table else [])):
        if not isinstance(table.setdefault(key, {}), dict):
            raise ConfigError(f"[{key}] of a recipe is a table; got {table[key]!r}")
    if not table["losses"]:
        raise ConfigError(
            f"recipe {table['name']} has no loss; add a table such as [losses.kl] "
            f"(kinds: {', '.join(LOSSES)})"
        )
    schedules: dict[str, dict[str, Schedule]] = {}
    table["schedules"] = schedules
    table["teaching"] = {n: made for n, v in table["losses"].items() if (made := _teaching(n, v))}
    for name, values in table["losses"].items():
        table["losses"][name], changing = _loss(name, values)
        schedules |= {name: changing} if changing else {}
    table["student"] = student_table(table["student"])
    table["data"] = make(DataOrder, table["data"], "data")
    if table.setdefault("dev") is not None:
        table["dev"] = make(DevOptions, dev_table(table["dev"]), "dev")
    return make(Recipe, table, "recipe")


def _teaching(name: str, values: Any) -> Teaching | None:
    """Takes what the table of a loss says of its teachers out of it; None: nothing."""
    if not isinstance(values, dict):
        return None
    given = {key: values.pop(key) for key in settings_of(Teaching) if key in values}
    try:
        return make(Teaching, given, f"losses.{name}") if given else None
    except ConfigError as error:
        where = f"losses.{name}"
        raise ConfigError(str(error) if where in str(error) else f"{where}: {error}") from error


def _loss(name: str, values: Any) -> tuple[Loss, dict[str, Schedule]]:
    """A loss with the numbers it starts with, and the schedules of those that change."""
    if not name.isidentifier() or not isinstance(values, dict):
        raise ConfigError(
            f"a loss is a table such as [losses.kl], its name letters, digits and '_'; got {name}"
        )
    kind = one_of("loss", str(values.pop("kind", name)), LOSSES)
    where, known = f"losses.{name}", typing.get_type_hints(LOSSES[kind])
    changing = {
        key: make(Schedule, value, f"{where}.{key}")
        for key, value in values.items()
        if isinstance(value, dict) and known.get(key) is float
    }
    try:
        loss = make(LOSSES[kind], values | {n: s.start for n, s in changing.items()}, where)
        moments(loss, changing)
    except ConfigError as error:
        if not changing:
            raise
        ways = [f"{where}.{key} goes from {schedule}" for key, schedule in changing.items()]
        raise ConfigError(": ".join([*ways, str(error)])) from error
    return loss, changing


def student_table(values: Json) -> Json:
    """A [student] table as it is kept; ConfigError for a field or layers that make no sense."""
    for key in values:
        one_of("field of student", key, STUDENT)
    same = values.get("same_tokenizer", False)
    if not isinstance(same, bool):
        raise ConfigError(f"student.same_tokenizer must be true or false; got {same!r}")
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
