"""Values that are set over those of a recipe, before any of it is checked."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from kdcache.errors import SUGGESTED, ConfigError, did_you_mean, near
from kdcache.inputs import INPUTS
from kdcache.losses import LOSSES
from kdcache.losses.teachers import Teaching
from kdcache.manifest import Json
from kdcache.records import settings_of
from kdcache.training.balance import Balance
from kdcache.training.data_order import DataOrder
from kdcache.training.dev_options import DevOptions
from kdcache.training.stage import plain_stages, require_reached, stage_table
from kdcache.training.student_table import KEPT, OPTIONS, STUDENT

SECTIONS = (
    "name",
    "description",
    "paper",
    "needs",
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


def choose(table: Json, given: Mapping[str, Any]) -> None:
    """Put fields of [dev] into the table of a recipe."""
    known = table.get("dev", {})
    if isinstance(known, dict):
        sources = DEV_SETS if given.keys() & DEV_SETS else set()
        table["dev"] = {k: v for k, v in known.items() if k not in sources} | dict(given)


def override(table: Json, setting: str, training: Mapping[str, str]) -> None:
    """Put a setting such as "losses.kl.weight=2" into the table of a recipe; see `load_recipe`."""
    key, equals, text = setting.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        shown = f"{setting[:60]}..." if len(setting) > 60 else setting
        raise ConfigError(f"an override is KEY=VALUE, as in losses.kl.weight=2; got {shown!r}")
    if path[0] not in SECTIONS:
        raise ConfigError(_unknown_key(key.strip(), table, training))
    if path[0] == "student" and path[1:] not in ([option] for option in OPTIONS):
        known = table.get("student")
        kept = known.items() if isinstance(known, dict) else ()
        table["student"] = {key: value for key, value in kept if key in KEPT}
    inner = table
    if path[0] in OF_STAGES:
        require_reached(plain_stages(table.get("stages")), path, f"--set {setting}")
    if path[0] == "stages" and len(path) > 2:
        inner, path = stage_table(table.get("stages"), path[1]), path[2:]
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {setting!r}: {name} of the recipe is no table")
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
