"""The commands after a build: train a student, evaluate a model, list the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_json, print_table
from kdcache_cli.scores import print_metrics, print_scores


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
    layers = o.layers(init_from_teacher)
    from kdcache.store import open_cache
    from kdcache.training.train import train as run

    caches = o.named(cache, "CACHE")
    teachers = o.of_heads(teacher, caches, "--teacher")
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
        eval_file=o.one_named(eval_file, "--eval"),
        eval_teacher=o.one_named(eval_teacher, "--eval-teacher"),
        dev=o.one_named(dev, "--dev"),
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


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Documents with labels.")],
    cache: Annotated[
        str | None,
        typer.Option(metavar="CACHE", help="Compare with the teacher, as far as it has the rows."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Score and time this teacher on the same documents."),
    ] = None,
    batch_size: o.ForwardBatch = 64,
    device: o.Device = "auto",
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    ignore_columns: o.IgnoreColumns = None,
    limit: o.Limit = None,
    max_length: o.ModelMaxLength = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Score slice by slice, too: documents by what this column says (domain, language, "
            "customer), with intervals and the worst slice; with --teacher also what is lost on "
            "each. `length` cuts by tokens where no column is called so. Repeat it for more.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write each document's text, slices, label, prediction and probabilities there, "
            "as CSV or, with the suffix .jsonl, as JSON lines.",
        ),
    ] = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Measure a model on labelled documents.

    Prints the task's metrics, calibration and speed, and agreement with the teacher for
    documents that a cache holds.
    """
    from kdcache.evaluation.evaluator import evaluate as run

    metrics = run(
        model,
        file,
        cache=cache,
        teacher=teacher,
        batch_size=batch_size,
        device=device,
        **o.columns(context),
        max_length=max_length,
        by=by or (),
        predictions=predictions,
        trust_remote_code=trust_remote_code,
        progress=context.obj,
    )
    (print_json if as_json else print_scores)(metrics)


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
    from kdcache_cli.shipped import read_recipes, summary

    shipped = read_recipes()
    if name is not None:
        print(shipped[one_of("recipe", name, shipped)], end="")
        return
    if cache is not None:
        _served(cache, list(shipped), student_layers, as_json)
        return
    if student_layers is not None:
        raise ConfigError("--student-layers is of a student of a cache: pass --cache too")
    rows = [(key, summary(text)) for key, text in shipped.items()]
    if as_json:
        print_json([{"name": key, "summary": about} for key, about in rows])
    else:
        print_table(("recipe", "what it does"), rows)


def _served(cache: str, names: list[str], layers: int | None, as_json: bool) -> None:
    from kdcache.store import open_cache
    from kdcache.training.recipe import load_recipe
    from kdcache.training.requirements import served_by

    found = served_by(open_cache(cache), [load_recipe(name) for name in names], layers)
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [
        (
            one.recipe,
            "no" if one.why else "yes",
            " ".join(f"--signal {text}" for text in one.signals) or one.why,
        )
        for one in found
    ]
    print_table(("recipe", "trains from it", "needs"), rows)
    yes = sum(not one.why for one in found)
    print(f"{yes} of {len(found)} train from {cache} as it is")
