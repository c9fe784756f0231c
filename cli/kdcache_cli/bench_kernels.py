"""The bench kernels command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache.errors import ConfigError, one_of
from kdcache_cli import bench_report as b
from kdcache_cli import options as o
from kdcache_cli.bench_kernels_tables import print_kernels, wrong

Json = dict[str, Any]


def _whole(option: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers written as 30522,128256; ConfigError if they are not."""
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers as in 30522,128256; got {text!r}") from error


def _dtypes(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(one_of("dtype", d, o.DTYPES) for d in text.split(","))


def kernels(
    context: typer.Context,
    op: Annotated[
        list[str] | None,
        typer.Option(metavar="OP", help="An op to measure; repeat it for more (all of them)."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="N,N2", help="Rows (512, and 4096 of hidden states; 8192 on a GPU)."),
    ] = None,
    vocab: Annotated[
        str | None,
        typer.Option(metavar="V,V2", help="Vocabulary sizes (30522; also 128256 on a GPU)."),
    ] = None,
    k: Annotated[int | None, typer.Option(metavar="K", help="Ids a row (64).")] = None,
    hidden: Annotated[
        str | None, typer.Option(metavar="H,H2", help="Widths of the hidden states (768).")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="fp32, bf16, fp16 or several (fp32; bf16 on a GPU)."),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A rival to time; repeat it for more (all present)."),
    ] = None,
    allocator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="default, or keeping, whose freed pages stay with the process; repeat it for both "
            "(both on a CPU).",
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="N", help="Repeats of every call (9; 25 on a GPU).")
    ] = None,
    limit_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CARD",
            help="H100 or H200: add the least time that each case would take on a card that is not "
            "here, predicted from its rates; repeat it for both.",
        ),
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT.json",
            help="Measure nothing: print, draw (--out) and predict from what an earlier run wrote.",
        ),
    ] = None,
    device: o.Device = "auto",
    out: b.Out = None,
    compare: b.Compare = None,
    tolerance: b.Tolerance = b.NOISE,
    as_json: o.AsJson = False,
) -> None:
    """Time the kernels against this machine's limit and their rivals.

    Every op is checked first, value and gradient against float64; one that is wrong is named, not
    timed, and the exit code is 1. The limit is measured in the same run: a copy of as many bytes
    as the op has to move, or a matrix product. On a CPU all is measured twice: rivals in plain
    torch lose much of their time to memory that the allocator gives back and takes anew.
    """
    from kdcache.bench.kernels import bench_kernels
    from kdcache.bench.kernels_grid import default_grid
    from kdcache.bench.kernels_plot import draw
    from kdcache.bench.limits import card, predict
    from kdcache.bench.report import load_report, save_report
    from kdcache.models import pick_device

    b.check_places(out, compare, "kernels")
    for name in limit_from or ():
        card(name)  # an unknown one is refused before minutes of measuring
    grid = {
        "rows": _whole("--rows", rows),
        "vocab": _whole("--vocab", vocab),
        "k": k,
        "hidden": _whole("--hidden", hidden),
        "repeats": repeats,
    }
    notes = out / "kernels.part.jsonl" if out and read is None else None
    several = {"op": op, "dtype": _dtypes(dtype), "rival": rival, "allocator": allocator}
    if read is None:
        where = pick_device(device)
        lists = {f"{name}s": values for name, values in several.items()}
        asked = default_grid(where, **grid, **lists)
        report = bench_kernels(asked, where, progress=context.obj, notes=notes)
    else:
        _refuse_measuring({**grid, **several})
        report = load_report(read, "kernels")
    if limit_from:
        predict(report, limit_from)
    if out:
        save_report(out / "kernels.json", report)
        draw(out / "kernels.png", report)
    if notes is not None:
        notes.unlink(missing_ok=True)
    for row in report["refused"]:
        print(f"error: {wrong(row)}", file=sys.stderr)
    b.finish(report, show=print_kernels, as_json=as_json, compare=compare, tolerance=tolerance)
    if report["refused"]:
        raise typer.Exit(1)


def _refuse_measuring(given: Json) -> None:
    asked = [f"--{name}" for name, value in given.items() if value is not None]
    if asked:
        raise ConfigError(
            f"--read shows what an earlier run measured; got {', '.join(asked)} beside it: leave "
            "out the one or the other"
        )
