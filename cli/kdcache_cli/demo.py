"""The demo command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_json, print_table, size


def demo(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write the cache, students and plot to.")
    ] = Path("kdcache-demo"),
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the split and the training.")
    ] = 0,
    as_json: o.AsJson = False,
) -> None:
    """Show what distillation buys, on text every machine has.

    A real teacher runs once and the same small student is trained twice, from labels only and
    from the cache. The corpus is the documentation in Python's own standard library: nothing is
    downloaded.
    """
    from kdcache.demo.run import run

    report = run(out, progress=context.obj, seed=seed)
    (print_json if as_json else _print)(report)


NAMES = {
    "teacher": "teacher",
    "labels": "student, from labels",
    "distilled": "student, from the cache",
}


def _print(report: dict[str, Any]) -> None:
    print_table(
        ("phase", "seconds", "size"),
        [(p["what"], f"{p['seconds']:.1f}", size(p["bytes"])) for p in report["phases"].values()],
        right=(1, 2),
    )
    print()
    print_table(
        ("model", "parameters", "accuracy", "95% interval", "sentences/s"),
        [_row(name, report["models"][key]) for key, name in NAMES.items()],
        right=(1, 2, 3, 4),
    )
    gain = report["gain"]
    low, high = (100 * value for value in gain["interval"])
    print(
        f"\nDistillation bought {100 * gain['accuracy']:+.1f} points of accuracy (95% interval "
        f"{low:+.1f} to {high:+.1f}, paired over {gain['documents']:,} test sentences)."
    )
    print(f"Plot: {report['plot']}")


def _row(name: str, scores: dict[str, Any]) -> tuple[str, ...]:
    low, high = (100 * value for value in scores["accuracy_interval"])
    return (
        name,
        f"{scores['parameters']:,}",
        f"{100 * scores['accuracy']:.1f}%",
        f"{low:.1f} to {high:.1f}",
        f"{scores['documents_per_s']:,.0f}",
    )
