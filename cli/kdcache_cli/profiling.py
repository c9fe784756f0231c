"""The command that tells where the time of a step of training goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcache_cli import options as o
from kdcache_cli import training_options as t
from kdcache_cli import values as v
from kdcache_cli.output import print_fields, print_json, print_table, print_title


def profile(
    context: typer.Context,
    cache: t.Caches,
    recipe: t.Recipe,
    steps: Annotated[
        int, typer.Option(metavar="N", help="Steps of each way that are timed.", min=1)
    ] = 20,
    stage: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a recipe with stages; the first if not given."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for profile.json, profile.png and trace.json, a Chrome trace of a step.",
        ),
    ] = None,
    student: t.Student = None,
    init_from_teacher: t.Layers = None,
    config: t.Config = None,
    same_tokenizer: t.SameTokenizer = False,
    trust_remote_code: o.TrustRemoteCode = False,
    vocabulary: t.Vocabulary = None,
    mix: t.Mix = None,
    batch_size: t.BatchSize = None,
    seed: t.Seed = None,
    device: t.Device = None,
    overrides: t.Overrides = None,
    teacher: t.Teachers = None,
    as_json: o.AsJson = False,
) -> None:
    """Tell where the time of a step of your own training goes.

    Takes some steps as `train` does, and the same steps by turns with plain torch losses and with a
    language model's head unfused: parts of a step, memory, and how near each op of kdcache's comes
    to what this machine can do. The student is not kept.
    """
    layers = v.layers(init_from_teacher)
    from kdcache.profiling.run import profile as run

    result = run(
        t.opened(cache, teacher),
        recipe=recipe,
        steps=steps,
        stage=stage,
        student=student,
        init_from_teacher=layers,
        config=config,
        same_tokenizer=same_tokenizer,
        trust_remote_code=trust_remote_code,
        vocabulary=vocabulary,
        seed=seed,
        batch_size=batch_size,
        device=device,
        overrides=overrides or [],
        mix=mix,
        out=out,
        progress=context.obj,
    )
    if as_json:
        print_json(result.report)
        return
    machine, settings = result.report["machine"], result.report["settings"]
    on_cpu = result.report["device"] == "cpu"
    print_fields(
        {
            "device": machine["processor"] if on_cpu else machine["gpu"],
            "threads": machine["threads"] if on_cpu else None,
            "recipe": settings["recipe"],
            "stage": settings["stage"],
            "documents a step": settings["documents_per_step"],
            "tokens a step": settings["tokens_per_step"],
            "files": out,
        }
    )
    for title, table, note in result.told():
        print_title(title)
        if table.rows:
            print_table(table.head, table.rows, right=range(1, len(table.head)))
        if note:
            print(note)
