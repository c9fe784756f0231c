"""The bench kernels command."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from kdcache.errors import ConfigError, one_of
from kdcache_cli import bench_report as b
from kdcache_cli import options as o
from kdcache_cli.output import print_fields, print_table, print_title, show, size

Json = dict[str, Any]

THOUSAND = 1000
SOFTWARE = ("torch", "numba", "triton", "liger-kernel")


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
    from kdcache.bench.kernels import bench_kernels, panels
    from kdcache.bench.kernels_grid import default_grid
    from kdcache.models import pick_device

    b.check_places(out, compare, "kernels")
    where = pick_device(device)
    grid = default_grid(
        where,
        ops=op,
        rows=_whole("--rows", rows),
        vocab=_whole("--vocab", vocab),
        k=k,
        hidden=_whole("--hidden", hidden),
        dtypes=_dtypes(dtype),
        rivals=rival,
        allocators=allocator,
        repeats=repeats,
    )
    report = bench_kernels(grid, where, progress=context.obj)
    if out:
        title = "Time of a kernel, and of its rivals with the better of two allocators"
        b.write(report, out, panels(report), title)
    for row in report["refused"]:
        print(f"error: {_wrong(row)}", file=sys.stderr)
    b.finish(report, show=_print, as_json=as_json, compare=compare, tolerance=tolerance)
    if report["refused"]:
        raise typer.Exit(1)


def _wrong(row: Json) -> str:
    outputs = ", ".join(
        f"{name} by {_off(found)} ({found['allowed']:.2g} allowed)"
        for name, found in row["wrong"].items()
    )
    return f"{_case(row)} is wrong and was not timed: off float64 in {outputs}"


def _off(found: Json) -> str:
    return "something not finite" if found["error"] is None else f"{found['error']:.2g}"


def _case(row: Json, *, short: bool = False) -> str:
    from kdcache.bench.kernels import title

    return title({k: v for k, v in row.items() if not short or k != "k"})


def _print(report: Json) -> None:
    machine, settings, rows = report["machine"], report["settings"], report["rows"]
    on_cpu = report["device"] == "cpu"
    print_fields(
        {
            "device": machine["processor"] if on_cpu else machine["gpu"],
            "threads": machine["threads"] if on_cpu else None,
            "software": ", ".join(f"{n} {machine[n]}" for n in SOFTWARE if n in machine),
            "ids a row": settings["k"],
            "left out": "; ".join(report["left_out"]) or None,
        }
    )
    if not rows:
        return
    print()
    print_table(
        ("kernel", "ms", "reached", "of limit", "memory", "best rival", "takes"),
        [_row(row) for row in rows],
        right=(1, 2, 3, 4, 6),
    )
    _print_rivals(rows)
    _print_goals(report)


def _print_goals(report: Json) -> None:
    missed = [goal for goal in report["goals"] if not goal["met"]]
    print_title(
        f"Goals, times the best rival under either allocator: met by "
        f"{len(report['goals']) - len(missed)} of {len(report['goals'])}"
    )
    for goal in missed:
        print(f"not met: {goal['goal']}: {goal['value']:.2f}, goal {goal['bound']:g}")


def _row(row: Json) -> tuple[str, ...]:
    return (
        _case(row, short=True),
        show(THOUSAND * row["seconds"]),
        _rate(row, row["seconds"]),
        f"{row['share_of_limit']:.0%}",
        _memory(row),
        *_best(row["best"]),
    )


def _best(best: Json | None) -> tuple[str, str]:
    if best is None:
        return "-", "-"
    where = ", pages kept" if best["allocator"] == "keeping" else ""
    return f"{best['rival']}{where}", f"{best['ratio']:.2f}x"


def _rate(row: Json, seconds: float) -> str:
    if row["bound"] == "copy":
        return f"{size(int(row['bytes'] / seconds))}/s"
    rate = row["flops"] / seconds / 1e9
    return f"{rate:.3g} GFLOP/s" if rate < THOUSAND else f"{rate / THOUSAND:.3g} TFLOP/s"


def _memory(figures: Json) -> str:
    return "-" if figures["peak_bytes"] is None else size(figures["peak_bytes"])


def _print_rivals(rows: list[Json]) -> None:
    """How many times as long each takes, and the memory it needs; then who was not timed."""
    timed = [n for row in rows for n, found in row["rivals"].items() if "seconds" in found]
    names = sorted(set(timed), key=timed.index)
    for title, cell in (
        ("Rivals: how many times as long they take, and where freed pages are kept", _times),
        ("Rivals: memory", _memory_of),
    ):
        print_title(title)
        print_table(
            ("kernel", *names),
            [
                (_case(row, short=True), *(cell(row["rivals"].get(name, {})) for name in names))
                for row in rows
            ],
            right=range(1, len(names) + 1),
        )
    others = [
        f"{name}: {why}"
        for row in rows
        for name, found in row["rivals"].items()
        if (why := _not_timed(row, found))
    ]
    if others:
        print_title("Not timed")
        print("\n".join(dict.fromkeys(others)))


def _times(found: Json) -> str:
    if "seconds" not in found:
        return "-"
    pages = f", {found['keeping']['ratio']:.2f}x" if "keeping" in found else ""
    return f"{found['ratio']:.2f}x{pages}"


def _memory_of(found: Json) -> str:
    return _memory(found) if "seconds" in found else "-"


def _not_timed(row: Json, found: Json) -> str | None:
    if "absent" in found:
        return str(found["absent"])
    if "failed" in found:
        return f"failed on {_case(row)}: {found['failed']}"
    if "wrong" in found:
        offs = ", ".join(f"{name} off by {_off(off)}" for name, off in found["wrong"].items())
        return f"wrong on {_case(row)}: {offs}"
    return None
