"""The command `bench fidelity`: bytes and truth of every codec on a real teacher."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli.bench_report import Compare, Out, Tolerance, check_places, finish
from kdcache_cli.output import print_fields, print_table, print_title

COLUMNS = (
    ("bytes_per_row", "bytes/row"),
    ("file_bytes_per_row", "its file"),
    ("code_kl", "codes' KL"),
    ("kl_t1", "KL, T=1"),
    ("error", "error, T=1"),
    ("angle", "angle, °"),
    ("kl_t2", "KL, T=2"),
    ("error_t2", "error, T=2"),
)


def fidelity(
    context: typer.Context,
    corpus: o.Corpus,
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="Folder or name of the teacher.")],
    task: o.Task = "masked-lm",
    rows: Annotated[
        int, typer.Option(metavar="N", min=256, help="Rows of logits to measure on.")
    ] = 4096,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the plan and the student.")] = 0,
    out: Out = None,
    compare: Compare = None,
    tolerance: Tolerance = 0.1,
    as_json: o.AsJson = False,
) -> None:
    """Measure what every codec costs in bytes and in truth, beside the formats of other projects.

    A language model says what it says of the first N rows of a corpus. Every codec stores and
    decodes it: bytes on disk, divergence from the teacher, and the gradient that a half-trained
    student gets from it.
    """
    from kdcache.bench.fidelity import run
    from kdcache.bench.fidelity_plot import draw
    from kdcache.bench.fidelity_sample import take_sample
    from kdcache.bench.report import save_report

    check_places(out, compare, "fidelity")
    sample = take_sample(
        o.one_corpus(corpus),
        teacher=teacher,
        task=task,
        rows=rows,
        seed=seed,
        progress=context.obj,
    )
    report = run(sample, progress=context.obj)
    if out is not None:
        save_report(out / "fidelity.json", report)
        draw(out / "fidelity.png", [report])
    finish(report, show=_print, as_json=as_json, compare=compare, tolerance=tolerance)


def _range(errors: list[float]) -> str:
    low, high = 100 * min(errors), 100 * max(errors)
    return f"{low:.2g} to {high:.2g}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _print(report: dict[str, Any]) -> None:
    sample = report["sample"]
    first, half = sample["student_kl"]
    print_fields(
        {
            "teacher": sample["teacher"],
            "rows": sample["rows"],
            "vocabulary": sample["vocabulary"],
            "entropy": f"{sample['entropy']:.2f} nats",
            "student": f"KL {half:.2f} nats, begun at {first:.2f}",
        }
    )
    print_title("Soft labels")
    logits = [row for row in report["rows"] if "bytes_per_row" in row]
    print_table(
        ("signal or format", *(title for _, title in COLUMNS)),
        [
            (row["signal"].removeprefix("logits:"), *(_short(row.get(name)) for name, _ in COLUMNS))
            for row in logits
        ],
        right=range(1, len(COLUMNS) + 1),
    )
    print_title("Relative error of the gradient at T=2, by what is kept of the tail")
    known = {row["signal"]: row["error_t2"] for row in report["rows"] if "error_t2" in row}
    both = [(name, known.get(f"{name}, tail as one token")) for name in known]
    rows = [(name, _short(known[name]), _short(other)) for name, other in both if other is not None]
    print_table(("signal", "its statistic at T=2", "one token"), rows, right=(1, 2))
    print_title("Hidden states")
    hidden = [row for row in report["rows"] if "bits_per_value" in row]
    print_table(
        ("signal", "bits/value", "error of a layer, %"),
        [(row["signal"], row["bits_per_value"], _range(row["error_by_layer"])) for row in hidden],
        right=(1,),
    )
