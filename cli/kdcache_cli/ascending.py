"""The command that makes a second round of caching: ascend."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_json
from kdcache_cli.reports import print_cache


def ascend(
    context: typer.Context,
    cache: o.Cache,
    teacher: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder or hub name of the cache's teacher.")
    ],
    out: Annotated[
        str, typer.Option(metavar="CACHE", help="Folder or URL to write the cache of points to.")
    ],
    student: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What was trained from the cache so far: points where it and its teacher differ "
            "more. Without it: points where the teacher names another class.",
        ),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(
            metavar="ETA",
            help="How far: in gradients for a student (1), as a share of the lead of the class at "
            "the boundary (0.3).",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Gradients followed: 1 for a student, 10 at most to the boundary."
        ),
    ] = None,
    device: o.Device = "auto",
    batch_tokens: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=1, help="Tokens of a forward, padding included."),
    ] = 8192,
    as_json: o.AsJson = False,
) -> None:
    """Cache what the teacher says at points, not at texts.

    Points are embedding outputs, moved: for a student of the teacher's embeddings up the gradient
    of its error, as in backward-kd, else over the teacher's decision boundary, as in bss. Started
    again, it goes on at the first part that is not finished.
    """
    from kdcache.building.ascending import ascend as run
    from kdcache.building.describe import describe_cache

    made = run(
        cache,
        teacher=teacher,
        out=out,
        student=student,
        eta=eta,
        steps=steps,
        device=device,
        batch_tokens=batch_tokens,
        progress=context.obj,
    )
    if as_json:
        print_json(describe_cache(made))
        return
    print_cache(describe_cache(made))
    if student is None:
        print(f"Next: {shlex.join(('kdcache', 'merge', cache, out))} BOTH")
        print("      kdcache train BOTH --recipe bss --init-from-teacher 2-4-6 --out STUDENT")
        return
    train = ("kdcache", "train", cache, out, "--recipe", "backward-kd", "--student", student)
    print(f"Next: {shlex.join(train)} --out STUDENT")
