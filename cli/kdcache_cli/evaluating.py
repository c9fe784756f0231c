"""The command that measures a model on labelled documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_json
from kdcache_cli.scores import print_scores


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
