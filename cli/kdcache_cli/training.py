"""The command that trains a student from caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli import values as v
from kdcache_cli.output import print_json
from kdcache_cli.scores import print_metrics


def train(
    context: typer.Context,
    cache: Annotated[
        list[str],
        typer.Argument(
            metavar="CACHE",
            help="Folder or URL of a cache, or of several. Those that differ in task or classes "
            "get a head each; NAME=CACHE names it.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            metavar="RECIPE", help="Name of a recipe (`kdcache recipes` lists them) or a TOML file."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the student to.")],
    student: Annotated[
        str | None,
        typer.Option(
            metavar="STUDENT",
            help="Start from a pretrained model: folder or hub name; or with new weights from "
            "bilstm or static, as in static:embedding=64.",
        ),
    ] = None,
    init_from_teacher: Annotated[
        str | None,
        typer.Option(metavar="LAYERS", help="Start from layers of the teacher, as in 2-4-6."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Start from a model configuration with new weights."),
    ] = None,
    same_tokenizer: Annotated[
        bool,
        typer.Option(
            "--same-tokenizer",
            help="Take your word that a --student without a tokenizer has the cache's vocabulary.",
        ),
    ] = False,
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
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="corpus|FILE|N",
            help="Keep the embeddings of the tokens that the cache's documents use; of those and "
            "the texts of FILE; or N rows, of the most used.",
        ),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Shares of the steps that several CACHEs get, as in 0.7,0.3, or by their numbers "
            "of documents: proportional, sqrt, even, annealed. An epoch has as many steps as all "
            "their documents fill; a cache goes on in the next where it stopped, and starts over "
            "when it is through. Without, an epoch is one pass over each.",
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="Passes over the documents, as training.num_train_epochs."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Learning rate, such as 1e-4: training.learning_rate."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Documents of a forward on a device: training.per_device_train_batch_size.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of new weights, dropout and order: training.seed."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="auto, cpu or cuda, the first GPU that is visible."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set a field of the recipe, such as losses.kl.temperature=4, or of a stage: "
            "stages.NAME.training.max_steps=9; repeat it.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="Train on the parts that are committed if some are missing."
        ),
    ] = False,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of a merged cache: the teacher, if not the first; HEAD=NAME for that of a head.",
        ),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Train a student from a cache, or from several.

    Neither corpus nor teacher is needed. Writes a model folder that transformers loads, with its
    tokenizer, metrics and loss curves.
    """
    layers = v.layers(init_from_teacher)
    from kdcache.store import open_cache
    from kdcache.training.train import train as run

    caches = v.named(cache, "CACHE")
    teachers = v.of_heads(teacher, caches, "--teacher")
    opened: Any = (
        {name: open_cache(one, teacher=teachers.get(name)) for name, one in caches.items()}
        if isinstance(caches, dict)
        else [open_cache(one, teacher=teachers.get("")) for one in caches]
    )
    result = run(
        opened,
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
    if not result.wrote:
        return  # the first of several ranks tells
    if as_json:
        print_json({"folder": str(result.folder), "metrics": result.metrics})
    else:
        print_metrics({"student": str(result.folder), **result.metrics})
