"""The tables of losses of a recipe, or of one of its stages, read and written."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, TypeVar

from kdcache.errors import ConfigError, one_of, saying
from kdcache.losses import LOSSES, Loss, Schedule
from kdcache.losses.schedules import Schedules, moments
from kdcache.losses.teachers import Teaching
from kdcache.manifest import Json
from kdcache.records import make, settings_of

Losses = Mapping[str, Loss]
Made = TypeVar("Made")


def losses_json(losses: Losses, schedules: Schedules, teaching: Mapping[str, Teaching]) -> Json:
    """Losses as tables, every default spelled out, schedules in the place of their numbers."""
    tables = {}
    for name, loss in losses.items():
        kind = {} if name == loss.kind else {"kind": loss.kind}
        changing = {n: asdict(s) for n, s in schedules.get(name, {}).items()}
        told = asdict(teaching[name]) if name in teaching else {}
        tables[name] = kind | asdict(typing.cast(Any, loss)) | changing | told
    return tables


def losses_of(tables: Any, owner: str, prefix: str = "") -> Json:
    """Fields of a recipe or stage: "losses" with the numbers they start with, "schedules" of those
    that change, and "teaching".

    `owner` is the recipe or stage they are of, and `prefix` what its fields begin with: for
    messages. Raises ConfigError for a loss that makes no sense, and where there is none.
    """
    if not isinstance(tables, dict):
        raise ConfigError(f"[{prefix}losses] of a recipe is a table; got {tables!r}")
    if not tables:
        raise ConfigError(
            f"{owner} has no loss; add a table such as [{prefix}losses.kl] "
            f"(kinds: {', '.join(LOSSES)})"
        )
    losses: dict[str, Loss] = {}
    schedules: dict[str, Mapping[str, Schedule]] = {}
    teaching: dict[str, Teaching] = {}
    for name, values in tables.items():
        where = f"{prefix}losses.{name}"
        if not name.isidentifier() or not isinstance(values, dict):
            raise ConfigError(
                "a loss is a table such as [losses.kl], its name letters, digits and '_'; got "
                f"{name}"
            )
        own = settings_of(Teaching)
        told = {key: value for key, value in values.items() if key in own}
        rest = {key: value for key, value in values.items() if key not in own}
        losses[name], changing = _loss(name, rest, where)
        schedules |= {name: changing} if changing else {}
        with _called(where):
            teaching |= {name: make(Teaching, told, where)} if told else {}
    return {"losses": losses, "schedules": schedules, "teaching": teaching}


def _loss(name: str, values: Json, where: str) -> tuple[Loss, Mapping[str, Schedule]]:
    kind = one_of("loss", str(values.get("kind", name)), LOSSES)
    plain = {key: value for key, value in values.items() if key != "kind"}
    with _called(where):
        return scheduled(LOSSES[kind], plain, where)


def _called(where: str) -> AbstractContextManager[None]:
    """Let a refusal begin with whose table it is of, unless it says so itself."""
    return saying(lambda text: text if where in text else f"{where}: {text}")


def scheduled(kind: type[Made], plain: Json, where: str) -> tuple[Made, Mapping[str, Schedule]]:
    """An object of a table's values, with the numbers it starts with, and schedules by its field.

    Raises ConfigError for values that make no sense, at any time of a schedule.
    """
    known = typing.get_type_hints(kind)
    changing = {
        key: make(Schedule, value, f"{where}.{key}")
        for key, value in plain.items()
        if isinstance(value, dict) and known.get(key) is float
    }
    try:
        made = make(kind, plain | {n: s.start for n, s in changing.items()}, where)
        moments(made, changing)
    except ConfigError as error:
        if not changing:
            raise
        ways = [f"{where}.{key} goes from {schedule}" for key, schedule in changing.items()]
        raise ConfigError(": ".join([*ways, str(error)])) from error
    return made, changing
