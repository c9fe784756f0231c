"""The command that ships a student: an ONNX model that runs without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli.output import both, print_fields, print_json, print_table, print_title, size

Json = Mapping[str, Any]

ROWS = {
    "fp32": "student, float32",
    "int8": "student, int8",
    "teacher_fp32": "teacher, float32",
    "teacher_int8": "teacher, int8",
}
SCORES = {
    "accuracy": "accuracy",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "pearson": "Pearson",
}


def ship(
    context: typer.Context,
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="Folder of a classifier or a regressor.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write it to.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights and embeddings in 8 bits: a quarter as large.")
    ] = False,
    measure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measure it on these documents, which have labels."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Measure this teacher beside it, shipped as well."),
    ] = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    ignore_columns: o.IgnoreColumns = None,
    limit: o.Limit = None,
    max_length: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Tokens of a text (as in its training)."),
    ] = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Write a student as ONNX, to run without torch.

    With it go tokenizer, labels and a short infer.py, which needs onnxruntime, tokenizers and
    numpy only. Measured, a table tells bytes, latency, memory and scores in float32 and int8, and
    those of the teacher, which in int8 may do as well.
    """
    from kdcache.shipping import ship as run

    report = run(
        student,
        out,
        int8=int8,
        measure=measure,
        teacher=teacher,
        **o.columns(context),
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        progress=context.obj,
    )
    (print_json if as_json else print_report)(report)


def print_report(report: Json) -> None:
    """What was written, and the table of what was measured."""
    fidelity = report["fidelity"]
    print_fields(
        {
            "folder": report["folder"],
            "model": "int8" if report["int8"] else "float32",
            "size": both(report["bytes"]),
            "longest text": f"{report['max_length']} tokens",
            "float32 logits differ from torch's": f"by {fidelity['difference']:.1g} at most, on "
            f"{fidelity['texts']} texts alone and padded",
        }
    )
    if "models" in report:
        title = f"On {report['documents']:,} documents of {report['file']}, 95% intervals"
        print_title(title)
        _print_models(report)
        print(
            f"Latency: {report['calls']} calls with one text, {report['threads']} thread, "
            f"{report['timed']}."
        )
    for note in report["notes"]:
        print(f"{note[:1].upper()}{note[1:]}.")
    texts = '"a text" "its pair" --pair' if report["texts"] == 2 else '"a text"'
    print(f"Try it: python {report['folder']}/infer.py {texts}")


def _print_models(report: Json) -> None:
    models = report["models"]
    score = next(name for name in SCORES if name in models["fp32"])
    agrees = "agreement" in models["fp32"]
    head = ["", "size", "p50 ms", "p95 ms", "peak", SCORES[score], "interval"]
    rows = [[*_cells(ROWS[name], row, score), *_agreement(row)] for name, row in models.items()]
    print_table(head + ["as torch"] * agrees, rows, right=range(1, len(head) + agrees))


def _cells(name: str, row: Json, score: str) -> Iterator[Any]:
    yield name
    yield size(row["bytes"])
    yield row["p50_ms"]
    yield row["p95_ms"]
    yield size(row["peak_bytes"])
    yield row[score]
    interval = row.get(f"{score}_interval")
    yield None if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}"


def _agreement(row: Json) -> list[str]:
    return [f"{row['agreement']:.1%}"] if "agreement" in row else []
