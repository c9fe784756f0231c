"""kdcache compare: teacher and student beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_fields, print_json, print_table, print_title

SHARES = {
    "agreement": "agree",
    "both_right": "both right",
    "lost": "lost",
    "gained": "gained",
    "both_wrong": "both wrong",
}
NAMED = 12  # classes of a confusion that a person still reads


def compare(
    context: typer.Context,
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A student's folder.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Documents with labels; those of the cache if not given.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="CACHE", help="Read what the teacher says from this cache."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Run this teacher on the documents of FILE."),
    ] = None,
    bins: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rows of lengths, quantiles of the tokens.")
    ] = 4,
    batch_size: o.ForwardBatch = 64,
    device: o.Device = "auto",
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    ignore_columns: o.IgnoreColumns = None,
    limit: o.Limit = None,
    max_length: o.ModelMaxLength = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Tell what a student lost of its teacher, and where.

    Puts both beside each other on labelled documents, those of a cache without running the
    teacher: how often they agree, both are right, the student lost what the teacher knows or
    gained on it, of all, by class and by length.
    """
    from kdcache.evaluation.comparing import compare as run

    report = run(
        student,
        file,
        cache=cache,
        teacher=teacher,
        bins=bins,
        batch_size=batch_size,
        device=device,
        **o.columns(context),
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        progress=context.obj,
    )
    (print_json if as_json else print_comparison)(report)


def print_comparison(report: Mapping[str, Any]) -> None:
    """All, classes and lengths a row each; what the two take documents for, where few classes."""
    left = report["left_out"]
    print_fields(
        {
            "student": report["student"],
            "teacher": report["teacher"],
            "left out, without a label": left["unlabelled"] or None,
            "left out, not in the cache": left["not_in_cache"] or None,
        }
    )
    print_title("lost: the teacher alone is right; gained: the student alone is")
    rows = [_row("all", report)]
    rows += [_row(row["class"], row) for row in report["classes"]]
    rows += [_row("{}-{} tokens".format(*row["tokens"]), row) for row in report["lengths"]]
    header = ("", "documents", *SHARES.values(), "KL(teacher ‖ student), nats")
    print_table(header, rows, right=range(1, len(header)))
    confusion = report.get("confusion")
    if confusion and len(confusion) <= NAMED:
        names = [row["class"] for row in report["classes"]]
        print_title("teacher (rows) and student (columns) take documents for")
        table = [(name, *counts) for name, counts in zip(names, confusion, strict=True)]
        print_table(("", *names), table, right=range(1, len(names) + 1))


def _row(name: str, row: Mapping[str, Any]) -> Sequence[Any]:
    shares = ("-" if row[key] is None else f"{row[key]:.1%}" for key in SHARES)
    return (name, row["documents"], *shares, row["divergence"])
