"""The commands that look at a cache: inspect it, verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcache.errors import CacheError
from kdcache_cli import options as o
from kdcache_cli.output import print_json
from kdcache_cli.reports import print_cache, print_plan

DAMAGED = 1


def inspect(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of a cache or a plan.")],
    as_json: o.AsJson = False,
) -> None:
    """Say what made a cache, what it holds and how true it is.

    Works for plans and for caches that are not complete.
    """
    from kdcache.describe import describe_cache, describe_plan
    from kdcache.store import open_cache, open_plan
    from kdcache.store.zarrs import read_record

    record = read_record(cache)
    if record is None:
        raise CacheError(f"{cache} is neither a plan nor a cache: it holds no zarr.json")
    if record.get("kind") == "plan":
        (print_json if as_json else print_plan)(describe_plan(open_plan(cache)))
    else:
        (print_json if as_json else print_cache)(describe_cache(open_cache(cache)))


def verify(
    context: typer.Context,
    cache: o.Cache,
    full: Annotated[bool, typer.Option("--full", help="Read every byte and check it.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Check that a cache is what was written.

    Names the damaged objects and exits with 1 if there are any. Without --full it checks that
    every object is there with its size.
    """
    from kdcache.store import verify as check

    problems = check(cache, full=full, progress=context.obj)
    if as_json:
        print_json({"path": str(cache), "full": full, "ok": not problems, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(_verdict(cache, len(problems), full))
    if problems:
        raise typer.Exit(DAMAGED)


def _verdict(cache: Path, problems: int, full: bool) -> str:
    if problems:
        return f"{cache}: {problems:,} problem{'s' if problems > 1 else ''}"
    if full:
        return f"{cache}: every byte is as it was written"
    return f"{cache}: every object is there with its size; --full reads every byte"
