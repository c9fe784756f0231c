"""What every bench command shares: its options, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache_cli.output import print_json, print_table, print_title

if TYPE_CHECKING:
    from kdcache.bench.report import Change, Panel

NOISE = 0.10

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder to write the report (JSON) and plot to."),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        metavar="OLD.json", help="An earlier report: list what got worse, and exit with 1 if any."
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(metavar="SHARE", help="How much worse still counts as noise.", min=0),
]


def write(report: dict[str, Any], out: Path, panels: Sequence[Panel], title: str) -> None:
    """Write a report and its plot to the folder `out`, named after the benchmark."""
    from kdcache.bench.report import draw_panels, save_report

    name = report["benchmark"]
    save_report(out / f"{name}.json", report)
    draw_panels(out / f"{name}.png", title, panels)


def check_places(out: Path | None, compare: Path | None, benchmark: str) -> None:
    """Raise now, not after minutes of measuring, if the one cannot be written or the other read."""
    from kdcache.bench.report import load_report
    from kdcache.store.io.durable_writes import require_writable

    if out:
        require_writable(out / f"{benchmark}.json", file=True)
    if compare:
        load_report(compare, benchmark)


def finish(
    report: dict[str, Any],
    *,
    show: Callable[[dict[str, Any]], None],
    as_json: bool,
    compare: Path | None,
    tolerance: float,
) -> None:
    """Print a report and what got worse since the one at `compare`; Exit(1) if anything did."""
    from kdcache.bench.report import load_report, regressions

    old = load_report(compare, report["benchmark"]) if compare else None
    worse = regressions(old, report, tolerance) if old else []
    if as_json:
        print_json({**report, "regressions": [change.to_json() for change in worse]})
    else:
        show(report)
        if old:
            _print_changes(old, report, worse, tolerance)
    if worse:
        raise typer.Exit(1)


def _print_changes(
    old: dict[str, Any], new: dict[str, Any], worse: list[Change], tolerance: float
) -> None:
    print_title(f"Compared with {old['date']}")
    for name in ("processor", "gpu", "threads", "torch"):
        was, now = old["machine"].get(name), new["machine"].get(name)
        if was != now:
            print(f"not the same {name}: {was} then, {now} now")
    if not worse:
        print(f"nothing is worse by more than {tolerance:.0%}")
        return
    rows = [(c.row, c.figure, c.old, c.new, f"{c.ratio:.2f}x") for c in worse]
    print_table(("case", "figure", "then", "now", "worse"), rows, right=(2, 3, 4))
