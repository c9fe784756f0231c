"""The recipes that come with kdcache, read as text: listing them loads nothing heavy."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files


def read_recipes() -> dict[str, str]:
    """The TOML text of every shipped recipe, by name."""
    folder = files("kdcache").joinpath("recipes")
    found = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in sorted(found, key=lambda file: file.name)
    }


NEEDS = (
    "labels alone",
    "soft labels",
    "soft labels at points",
    "a masked language model's words",
    "pooled features",
    "hidden states of documents",
    "hidden states of tokens",
    "attention",
    "attention and hidden states",
    "attributions",
)
"""What recipes need of a cache, the least first; each says which as its `needs`."""


def by_need(shipped: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What each recipe needs, its name and what it does; those that need the same are together."""
    tables = {name: tomllib.loads(text) for name, text in shipped.items()}
    rows = [(table["needs"], name, table["description"]) for name, table in tables.items()]
    return sorted(rows, key=lambda row: NEEDS.index(row[0]))


def training_fields() -> set[str]:
    """The fields of [training] that shipped recipes set."""
    return {
        name for text in read_recipes().values() for name in tomllib.loads(text).get("training", {})
    }
