"""The command that says what a cache is."""

from __future__ import annotations

from typing import Annotated

import typer

from kdcache.errors import CacheError
from kdcache_cli import options as o
from kdcache_cli.output import print_json
from kdcache_cli.reports import print_cache, print_plan


def inspect(
    cache: Annotated[
        str, typer.Argument(metavar="CACHE", help="Folder or URL of a cache or a plan.")
    ],
    teacher: o.OfTeacher = None,
    as_json: o.AsJson = False,
) -> None:
    """Say what made a cache, what it holds and how true it is.

    Works for plans and for caches that are not complete.
    """
    from kdcache.building.describe import describe_cache, describe_plan
    from kdcache.store import locate, open_cache, open_plan
    from kdcache.store.format.zarr_metadata import read_record

    record = read_record(locate(cache))
    if record is None:
        raise CacheError(f"{cache} is neither a plan nor a cache: it holds no zarr.json")
    if record.get("kind") == "plan":
        (print_json if as_json else print_plan)(
            describe_plan(open_plan(cache), record["plan"]["sha256"])
        )
    else:
        (print_json if as_json else print_cache)(describe_cache(open_cache(cache, teacher=teacher)))
