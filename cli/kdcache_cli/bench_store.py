"""The bench store command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache_cli import bench_report as b
from kdcache_cli import options as o
from kdcache_cli.output import print_fields, print_table, print_title, show, size

Json = dict[str, Any]


def store(
    context: typer.Context,
    cache: Annotated[
        Path | None,
        typer.Argument(metavar="[CACHE]", help="A cache to read (one is made)", show_default=False),
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of the cache that is made, 205 bytes each.")
    ] = 2**20,
    repeats: Annotated[int, typer.Option(metavar="N", help="Repeats of every reading.")] = 5,
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder, on the disk to measure, for temporary files."),
    ] = None,
    out: b.Out = None,
    compare: b.Compare = None,
    tolerance: b.Tolerance = b.NOISE,
    as_json: o.AsJson = False,
) -> None:
    """Time reading and writing a cache against numpy, zarr-python and others.

    Training batches in shuffled order, documents in sequence and one at a time, a cold cache,
    writing, and the loader up to tensors. What each gives is checked before it is timed.
    """
    from kdcache.bench.store import bench_store, panels

    b.check_places(out, compare, "store")
    report = bench_store(
        cache, tokens=tokens, repeats=repeats, scratch=scratch, progress=context.obj
    )
    if out:
        b.write(report, out, panels(report), "Reading a cache, by tokens a second")
    b.finish(report, show=_print, as_json=as_json, compare=compare, tolerance=tolerance)


def _print(report: Json) -> None:
    chunks = sorted(set(report["chunk_rows"].values()))
    print_fields(
        {
            "processor": report["machine"]["processor"],
            "cache": f"{report['documents']:,} documents, {report['tokens']:,} tokens",
            "rows of a chunk": ", ".join(f"{rows:,}" for rows in chunks),
            "left out": "; ".join(report["left_out"]) or None,
        }
    )
    print_title("Reading, and writing")
    print_table(
        ("case", "reader", "tokens/s", "bytes/s", "batch, ms", "of memmap"),
        [_row(row) for row in report["rows"]],
        right=(2, 3, 4, 5),
    )
    if report["goals"]:
        print_title("Goals")
        print_table(
            ("", "reached", "goal", "met"),
            [(g["goal"], g["value"], _bound(g), g["met"]) for g in report["goals"]],
            right=(1, 2),
        )


def _row(row: Json) -> tuple[Any, ...]:
    rate = row.get("bytes_per_s")
    share = row.get("over_memmap")
    if share is None and "over_raw" in row:
        return row["case"], row["reader"], None, _speed(rate), None, f"{row['over_raw']:.2f} of raw"
    return (
        row["case"],
        row["reader"],
        row["tokens_per_s"],
        _speed(rate),
        row.get("batch_ms"),
        None if share is None else f"{share:.2f}",
    )


def _speed(rate: float | None) -> str | None:
    return None if rate is None else f"{size(int(rate))}/s"


def _bound(goal: Json) -> str:
    return f"{'<=' if goal['most'] else '>='} {show(goal['bound'])}"
