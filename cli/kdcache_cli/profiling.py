"""The command that tells where the time of a step of training goes, or that of a build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache.errors import ConfigError
from kdcache_cli import options as o
from kdcache_cli import training_options as t
from kdcache_cli import values as v
from kdcache_cli.output import print_fields, print_json, print_table, print_title

OF_BUILD = ("task", "signal", "dtype", "batch_tokens", "limit")
OF_BOTH = ("build", "teacher", "out", "device", "trust_remote_code", "as_json")
"""Parameters that a profile of a build has; all others are of one of training."""


def profile(
    context: typer.Context,
    cache: Annotated[
        list[str] | None,
        typer.Argument(metavar="CACHE", help="Folder or URL of a cache, or of several, as train."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Name of a recipe, or a TOML file."),
    ] = None,
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
            help="Folder for profile.json, profile.png and trace.json, a Chrome trace of a step; "
            "of a build, build.json and build.png.",
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
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="With --build its folder; else as train: that of a merged cache."
        ),
    ] = None,
    build: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS",
            help="In the place of CACHE: profile a build of these files by --teacher and --task.",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Of --build.")] = None,
    signal: Annotated[
        list[str] | None, typer.Option(metavar="SIGNAL", help="Of --build; repeat it for more.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Of --build: fp32, bf16 or fp16.",
            callback=v.known("dtype", o.DTYPES),
        ),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="Of --build: of a forward.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Of --build: documents (2,000).", min=1)
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Tell where the time of a step of your own training goes.

    Takes some steps as `train` does, and the same steps by turns with plain torch losses and with a
    language model's head unfused: parts of a step, memory, and how near each op of kdcache's comes
    to what this machine can do. The student is not kept. With --build, where the time of running
    the teacher goes.
    """
    if build:
        _require_alone(
            context, OF_BUILD + OF_BOTH, "goes with CACHE and --recipe, not with --build"
        )
        _of_build(context, build, teacher or [], out, as_json)
        return
    training = set(context.params) - {*OF_BUILD}
    _require_alone(context, training, "goes with --build CORPUS alone")
    if not cache or recipe is None:
        raise ConfigError(
            "profile takes a CACHE and --recipe, as train does; or --build CORPUS, --teacher and "
            "--task, as build does"
        )
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


def _require_alone(context: typer.Context, allowed: Any, why: str) -> None:
    """Raise ConfigError for a parameter that was given and is of the other kind of profile."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{parameter.opts[0]} {why}: leave it out")


def _of_build(
    context: typer.Context, corpus: list[str], teacher: list[str], out: Path | None, as_json: bool
) -> None:
    given = context.params
    if len(teacher) != 1 or given["task"] is None:
        raise ConfigError("profile --build needs --teacher, one folder or hub name, and --task")
    from kdcache.profiling.building import profile_build

    names = {"signal": "signals", **{name: name for name in OF_BUILD if name != "signal"}}
    options: dict[str, Any] = {new: given[old] for old, new in names.items() if given[old]}
    result = profile_build(
        o.one_corpus(corpus),
        teacher=teacher[0],
        out=out,
        device=given["device"] or "auto",
        trust_remote_code=given["trust_remote_code"],
        progress=context.obj,
        **options,
    )
    if as_json:
        print_json(result.report)
        return
    table = result.table()
    print_title("Where a build's time goes")
    print_table(table.head, table.rows, right=range(1, len(table.head)))
    print(result.notes())
