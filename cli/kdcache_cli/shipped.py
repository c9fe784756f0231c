"""The recipes that come with kdcache, read as text: listing them loads nothing heavy."""

from __future__ import annotations

import tomllib
from importlib.resources import files


def read_recipes() -> dict[str, str]:
    """The TOML text of every shipped recipe, by name."""
    folder = files("kdcache").joinpath("recipes")
    found = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in sorted(found, key=lambda file: file.name)
    }


def training_fields() -> set[str]:
    """The fields of [training] that shipped recipes set."""
    return {
        name for text in read_recipes().values() for name in tomllib.loads(text).get("training", {})
    }


def summary(text: str) -> str:
    """What a recipe says it does: its `description`, or else its first comment."""
    described = tomllib.loads(text).get("description")
    if described:
        return str(described)
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
