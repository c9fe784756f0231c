"""The commands that move caches: copy one, merge several, export one for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache_cli import options as o
from kdcache_cli.output import both, print_fields, print_json

if TYPE_CHECKING:
    from kdcache.maintenance.transfer import Transfer


def copy(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder or URL of a plan or a cache.")
    ],
    out: Annotated[str, typer.Argument(metavar="DST", help="Folder or URL to copy it to.")],
    as_json: o.AsJson = False,
) -> None:
    """Copy a plan or a cache between folders and object stores.

    Every object is checked where it is read and where it was written. Started again, a copy goes
    on where it stopped, and adds what the source has gained.
    """
    from kdcache.maintenance.copying import copy as run

    _report(out, run(source, out, progress=context.obj), as_json)


def merge(
    context: typer.Context,
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="CACHE... OUT",
            help="Folders or URLs of caches of one plan, then of the new cache.",
            show_default=False,
        ),
    ],
    as_json: o.AsJson = False,
) -> None:
    """Merge caches of one plan into a new one.

    Their signals lie side by side; layers that were asked of the same teacher later join those that
    are there, if they are stored alike.
    What another teacher said is kept under its name: train --teacher NAME. Started again, a merge
    goes on where it stopped.
    """
    from kdcache.maintenance.merging import merge as run

    *sources, out = places
    _report(out, run(sources, out, progress=context.obj), as_json)


def export(
    context: typer.Context,
    cache: o.Cache,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the files to.")],
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="safetensors or parquet."),
    ] = "safetensors",
    raw: Annotated[
        bool, typer.Option("--raw", help="Arrays as they are stored, instead of decoded.")
    ] = False,
    teacher: o.OfTeacher = None,
    as_json: o.AsJson = False,
) -> None:
    """Write a cache to files for other tools, one for each part.

    They hold documents' ids, tokens and labels, log-probabilities and hidden states.
    """
    from kdcache.maintenance.exporting import export as run
    from kdcache.maintenance.exporting import require_no_model
    from kdcache.store import open_cache

    require_no_model(cache)
    source = open_cache(cache, teacher=teacher)
    made = run(source, out, form=form, raw=raw, progress=context.obj)
    if as_json:
        print_json({"folder": str(out), "files": made.files, "bytes": made.bytes})
    else:
        print_fields({"folder": out, "files": len(made.files), "size": both(made.bytes)})


def _report(out: str, done: Transfer, as_json: bool) -> None:
    if as_json:
        fields = {name: getattr(done, name) for name in done.__dataclass_fields__}
        print_json({"out": out, **fields})
        return
    there = done.objects - done.written_objects
    print_fields(
        {
            "out": out,
            "objects": done.objects,
            "size": both(done.bytes),
            "written": both(done.written_bytes),
            "there before": f"{there:,} objects" if there else None,
        }
    )
