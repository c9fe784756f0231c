"""The command that trains a student from caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcache_cli import options as o
from kdcache_cli import training_options as t
from kdcache_cli import values as v
from kdcache_cli.output import print_json
from kdcache_cli.scores import print_metrics


def train(
    context: typer.Context,
    cache: t.Caches,
    recipe: t.Recipe,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the student to.")],
    student: t.Student = None,
    init_from_teacher: t.Layers = None,
    config: t.Config = None,
    same_tokenizer: t.SameTokenizer = False,
    trust_remote_code: o.TrustRemoteCode = False,
    eval_file: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            help="Labelled documents to measure it on; of several heads NAME=FILE, repeated.",
        ),
    ] = None,
    eval_teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Score this teacher on --eval and on the dev set too; NAME=FOLDER for heads.",
        ),
    ] = None,
    dev: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Labelled documents to choose on: the weights that score best on them are kept; "
            "of several heads NAME=FILE for each, and those of the best mean score.",
        ),
    ] = None,
    dev_split: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Choose on a share of the (first) cache's documents, such as 10%; of heads, of "
            "each cache's.",
        ),
    ] = None,
    dev_every: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Score at every epoch (the default), or every N steps."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(metavar="N", help="Stop after N scores in a row without a better one."),
    ] = None,
    vocabulary: t.Vocabulary = None,
    mix: t.Mix = None,
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="Passes over the documents, as training.num_train_epochs."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Learning rate, such as 1e-4: training.learning_rate."),
    ] = None,
    batch_size: t.BatchSize = None,
    seed: t.Seed = None,
    device: t.Device = None,
    overrides: t.Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="Train on the parts that are committed if some are missing."
        ),
    ] = False,
    teacher: t.Teachers = None,
    as_json: o.AsJson = False,
) -> None:
    """Train a student from a cache, or from several.

    Neither corpus nor teacher is needed. Writes a model folder that transformers loads, with its
    tokenizer, metrics and loss curves.
    """
    layers = v.layers(init_from_teacher)
    from kdcache.training.launch import leave_together
    from kdcache.training.train import train as run

    result = run(
        t.opened(cache, teacher),
        recipe=recipe,
        out=out,
        student=student,
        init_from_teacher=layers,
        config=config,
        same_tokenizer=same_tokenizer,
        trust_remote_code=trust_remote_code,
        eval_file=v.one_named(eval_file, "--eval"),
        eval_teacher=v.one_named(eval_teacher, "--eval-teacher"),
        dev=v.one_named(dev, "--dev"),
        dev_split=dev_split,
        dev_every=dev_every,
        patience=patience,
        vocabulary=vocabulary,
        mix=mix,
        seed=seed,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        device=device,
        overrides=overrides or [],
        resume=resume,
        allow_partial=allow_partial,
        progress=context.obj,
    )
    leave_together()
    if not result.wrote:
        return  # the first of several ranks tells
    if as_json:
        print_json({"folder": str(result.folder), "metrics": result.metrics})
    else:
        print_metrics({"student": str(result.folder), **result.metrics})
