"""Configurations: frozen dataclasses made of TOML, JSON or texts, and tables written as TOML."""

from __future__ import annotations

import functools
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from kdcache.errors import ConfigError, one_of

Made = TypeVar("Made")

NAMES: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    dict: "a table",
    types.NoneType: "left out",
}
"""What a value of a type is called in messages; whatever else is a list."""


def settings_of(kind: type[Any]) -> dict[str, Field[Any]]:
    """Fields of a configuration that are written down, by name: those that count in comparison."""
    return {entry.name: entry for entry in fields(kind) if entry.compare}


def make(kind: type[Made], values: Mapping[str, Any], where: str) -> Made:
    """Make a dataclass of JSON or TOML values; a list becomes a tuple where one is declared.

    Raises ConfigError, naming `where` and the field, for an unknown or missing field and for a
    value of another type.
    """
    known, hints = settings_of(kind), _hints(kind)
    given = {}
    for key, value in values.items():
        one_of(f"field of {where}", key, known)
        given[key] = _as_declared(value, hints[key])
        if not _fits(given[key], hints[key]):
            raise ConfigError(f"{where}.{key} must be {_name(hints[key])}; got {value!r}")
    for name in required(kind):
        if name not in values:
            raise ConfigError(f"{where} needs {name}")
    return kind(**given)


def _hints(kind: Any) -> dict[str, Any]:
    """Declared types by field: evaluated once, as every opening of a cache asks for them."""
    return _evaluated(kind)


_evaluated = functools.cache(typing.get_type_hints)


def required(kind: type[Any]) -> list[str]:
    """Names of the fields without a default."""
    return [
        name
        for name, entry in settings_of(kind).items()
        if entry.default is MISSING and entry.default_factory is MISSING
    ]


def from_texts(kind: type[Made], texts: Mapping[str, str], where: str) -> Made:
    """Make a dataclass of texts, as options of a command line are: "64", "0.2", "2-4-6".

    Raises ConfigError, naming `where` and the field, for a text that is no such value.
    """
    hints = _hints(kind)
    values = {}
    for key, text in texts.items():
        one_of(f"option of {where}", key, settings_of(kind))
        values[key] = _read(text, hints[key], where, key)
    return make(kind, values, where)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The table of a TOML file; ConfigError, calling it `what`, if it is none."""
    try:
        return parse_toml(path.read_text("utf-8"), what)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8: {error.reason}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {error.strerror}") from error


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """The table of a TOML text; ConfigError, calling it `what`, if it is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of 5,000 digits
        raise ConfigError(f"{what} is not TOML: {str(error)[:200]}") from error


def to_toml(table: Mapping[str, Any]) -> str:
    """A table as TOML, which has no null: what is None is left out, and so are empty tables."""
    return tomli_w.dumps(dict(_written(table)))


def _written(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            if inner := dict(_written(value)):
                yield key, inner
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            yield key, [dict(_written(one)) for one in value]  # an array of tables
        elif value is not None:
            yield key, value


def _as_declared(value: Any, hint: Any) -> Any:
    return tuple(value) if isinstance(value, list) and _is_tuple(hint) else value


def _is_tuple(hint: Any) -> bool:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return any(typing.get_origin(option) is tuple for option in options)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = typing.get_origin(hint) or hint
    if kind is tuple and typing.get_args(hint):
        inner = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_fits(item, inner) for item in value)
    return not isinstance(kind, type) or isinstance(value, kind)


def _read(text: str, hint: Any, where: str, key: str) -> Any:
    """A text as a value of a declared type; of a union's the first that is not None."""
    if isinstance(hint, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        wrong = f"{where}: {key} is numbers, as in {key}=2-4-6; got {text!r}"
        return [_number(part, typing.get_args(hint)[0], wrong) for part in text.split("-")]
    return _number(text, hint, f"{where}: {key} is {_name(hint)}; got {text!r}")


def _number(text: str, hint: Any, wrong: str) -> Any:
    try:
        return hint(text) if hint in (int, float) else text
    except ValueError as error:
        raise ConfigError(wrong) from error


def _name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_name(option) for option in typing.get_args(hint))
    return NAMES.get(typing.get_origin(hint) or hint, "a list")
