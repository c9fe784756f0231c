"""The command that lists the recipes, prints one, and tells those that a cache serves."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_json, print_table, print_title

if TYPE_CHECKING:
    from kdcache.training.requirements import Served


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this recipe.", show_default=False)
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="CACHE",
            help="Say which of them train from this cache as it is, and what --signal would serve "
            "the others.",
        ),
    ] = None,
    student_layers: o.StudentLayers = None,
    as_json: o.AsJson = False,
) -> None:
    """List the recipes, print one, or tell those a cache serves."""
    from kdcache.errors import ConfigError, one_of
    from kdcache_cli.shipped import by_need, read_recipes

    shipped = read_recipes()
    if name is not None:
        print(shipped[one_of("recipe", name, shipped)], end="")
        return
    if cache is not None:
        _served(cache, list(shipped), student_layers, as_json)
        return
    if student_layers is not None:
        raise ConfigError("--student-layers is of a student of a cache: pass --cache too")
    rows = by_need(shipped)
    if as_json:
        print_json([{"name": key, "needs": need, "summary": about} for need, key, about in rows])
        return
    wide = max(map(len, shipped))
    for need, alike in groupby(rows, lambda row: row[0]):
        print_title(f"from {need}")
        print_table((), [(f"  {key:{wide}}", about) for _, key, about in alike])


def _served(cache: str, names: list[str], layers: int | None, as_json: bool) -> None:
    from kdcache.store import open_cache
    from kdcache.training.recipe import load_recipe
    from kdcache.training.requirements import served_by

    found = served_by(open_cache(cache), [load_recipe(name) for name in names], layers)
    found.sort(key=lambda one: (bool(one.why), one.signals))  # those of one need together
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [(one.recipe, "no" if one.why else "yes", _needs(one)) for one in found]
    print_table(("recipe", "trains from it", "needs"), rows)
    yes = sum(not one.why for one in found)
    print(f"{yes} of {len(found)} train from {cache} as it is")


def _needs(one: Served) -> str:
    """What a cache lacks for a recipe: signals, or what no signal is, or both."""
    if not one.signals:
        return one.why
    signals = " ".join(f"--signal {text}" for text in one.signals)
    return f"{signals}; then {one.beside}" if one.beside else signals
