"""kdcache report: what students, their teachers and caches came to, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_json, size


def report(
    context: typer.Context,
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR",
            help="Folders of students, sweeps, shipped models, taught teachers and caches (these "
            "also as URLs).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Where the page goes; an earlier report there goes."),
    ] = Path("report.html"),
    markdown: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the same as Markdown, with its pictures in a folder beside."
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", metavar="FILE", help="Score the students on these documents first."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Score this teacher on them, too."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Score them slice by slice too, by this column (that of the labels for the "
            "classes) or by length. Repeat it for more.",
        ),
    ] = None,
    batch_size: o.ForwardBatch = 64,
    device: o.Device = "auto",
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Put students, teacher and cache on one page.

    One HTML file that needs no network and is read on a phone: task, data, scores with intervals,
    curves, scores against sizes and times, classes and slices, latency, bytes and fidelity of the
    cache, hashes. Figures are those that the folders hold, and what they lack is said.
    """
    from kdcache.reporting.run import report as run

    made = run(
        *folders,
        out=out,
        markdown=markdown,
        eval_file=evaluation,
        teacher=teacher,
        by=by or (),
        batch_size=batch_size,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=context.obj,
    )
    if as_json:
        print_json({"out": str(out), "markdown": markdown, **made.to_json()})
        return
    for path in filter(None, (out, markdown)):
        print(f"{path}  {size(path.stat().st_size)}")
    for note in made.facts.unknown():
        print(f"not known: {note.replace('`', '')}")
