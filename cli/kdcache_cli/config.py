"""A command's options from a TOML file; those on the command line win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from kdcache.errors import ConfigError, one_of
from kdcache.records import read_toml


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults from the TOML file `path`: its keys are the command's own options.

    Runs before the other options are read. Raises ConfigError, with the nearest name, for a key
    that is no option, and for values of the wrong kind.
    """
    if path is not None:
        options, table = _options(context), read_toml(path, str(path))
        defaults = {}
        for key, value in table.items():
            name, repeated = options[one_of(f"key of {path}", key.replace("_", "-"), options)]
            _check(path, key, value, repeated)
            defaults[name] = [value] if repeated and isinstance(value, str) else value
        context.default_map = defaults
    return path


def _options(context: typer.Context) -> dict[str, tuple[str, bool]]:
    """The command's options as keys: parameter, and whether it can be given several times."""
    return {
        option.opts[0].lstrip("-").replace("_", "-"): (
            str(option.name),
            bool(getattr(option, "multiple", False)) or option.nargs == -1,
        )
        for option in context.command.params
        if option.name not in ("config", "help")
    }


def _check(path: Path, key: str, value: Any, repeated: bool) -> None:
    if isinstance(value, dict):
        raise ConfigError(f"{path}: {key} is a table; options stand at the top, as in {key} = ...")
    if isinstance(value, list) and not repeated:
        raise ConfigError(f"{path}: {key} takes one value; got a list of {len(value)}")
