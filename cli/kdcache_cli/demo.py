"""The demo command."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli import values as v
from kdcache_cli.output import print_json, print_table, print_title, size

CORPORA = ("reviews", "docstrings")


def demo(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write the cache, models and plot to.")
    ] = Path("kdcache-demo"),
    corpus: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="reviews: rated sentences, fetched once (2.4 MB); docstrings: offline.",
            callback=v.known("corpus", CORPORA),
        ),
    ] = "reviews",
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the split and the training.")
    ] = 0,
    as_json: o.AsJson = False,
) -> None:
    """Show what distillation buys: one teacher, several students.

    A real encoder is taught from a few labelled movie reviews and runs once; students of several
    sizes learn from its cache. All are shipped in int8 and scored once, on movie reviews and on
    products, tweets and news, where nobody trained. Run again, it keeps what is finished.
    """
    from kdcache.demo.run import run

    report = run(out, corpus=corpus, progress=context.obj, seed=seed)
    (print_json if as_json else _print)(report)


def _print(report: dict[str, Any]) -> None:
    _print_corpus(report)
    steps = report["steps"].values()
    rows = [
        (s["what"], f"{s['seconds']:.0f}", size(s["bytes"]) if s["bytes"] else "") for s in steps
    ]
    total = sum(step["seconds"] for step in steps)
    print_table(("step", "seconds", "on disk"), [*rows, ("all", f"{total:.0f}", "")], right=(1, 2))
    print()
    _print_models(report)
    _print_gains(report)
    _print_verdict(report)
    _print_costs(report)
    _print_end(report)


def _print_corpus(report: dict[str, Any]) -> None:
    counts = report["sentences"]
    home, *away = counts["tests"]
    print(f"Corpus: {report['source']}.")
    nobody = f" Nobody trains on {', '.join(away)}." if away else ""
    print(
        f"{counts['labelled']:,} of {counts['train']:,} {home} to train on have a label; "
        f"{counts['dev']:,} choose which epoch is kept.{nobody}\n"
    )


def _print_models(report: dict[str, Any]) -> None:
    domains = list(report["sentences"]["tests"])
    print_table(
        ("model", "MB", "ms", *(f"{domain} %" for domain in domains)),
        [_row(model, domains) for model in report["models"].values()],
        right=range(1, 3 + len(domains)),
    )
    print("\nMB of the files that run; ms for one sentence on one thread; ± is the 95% interval.")


def _row(model: dict[str, Any], domains: list[str]) -> tuple[str, ...]:
    figures = []
    for domain in domains:
        score = model["scores"][domain]
        low, high = score["interval"]
        figures.append(f"{100 * score['accuracy']:.1f} ± {50 * (high - low):.1f}")
    return (model["name"], f"{model['bytes'] / 1e6:.1f}", f"{model['p50_ms']:.1f}", *figures)


def _print_gains(report: dict[str, Any]) -> None:
    layers = len(report["settings"]["baseline"])
    parts = []
    for where, gain in report["gains"].items():
        low, high = (100 * value for value in gain["interval"])
        parts.append(f"{100 * gain['gain']:+.1f} points {where} ({low:+.1f} to {high:+.1f})")
    print(
        f"From the cache rather than labels alone, in as many steps, the {layers}-layer student "
        f"gains {' and '.join(parts)}: 95% intervals, paired sentence by sentence, of other "
        "sentences and not of other seeds."
    )


def _print_verdict(report: dict[str, Any]) -> None:
    teacher = report["models"]["teacher"]
    print(
        f"The teacher itself in int8 takes {teacher['bytes'] / 1e6:.1f} MB and "
        f"{teacher['p50_ms']:.1f} ms: where that is small and fast enough, ship the teacher."
    )


def _print_costs(report: dict[str, Any]) -> None:
    costs = report["costs"]
    print(
        f"With the teacher in the loop a student takes {costs['saving']:.2f} times as long; the "
        f"cache has paid after {costs['crossing']:.2g} students: {report['picture']}"
    )


def _print_end(report: dict[str, Any]) -> None:
    folder, command = report["folder"], _command()
    layers = "-".join(map(str, report["settings"]["baseline"]))
    print_title("What is where")
    print_table(
        (),
        [
            (f"{folder}/teacher, {folder}/student-*", "model folders, with a card"),
            (f"{folder}/cache.zarr", "what the teacher said: train more students from it"),
            (f"{folder}/shipped", "ONNX in int8, run without torch"),
        ],
    )
    print_title("Your own data: CSV, TSV, JSONL, Parquet or text, labels where you have them")
    for line in own_data(report["encoder"], layers):
        print(f"  {command} {line}")
    print_title("A student is a model like any other")
    for line in report["pipeline"]["code"]:
        print(f"  >>> {line}")
    print(f"  {report['pipeline']['output']}")
    print_title("Now you. Give it a sentence of your own:")
    print(f'  {_python()} {report["shipped"]}/infer.py "I would watch it again tomorrow."')


def own_data(encoder: str, layers: str) -> list[str]:
    """The commands from labelled documents to a model that is shipped."""
    task = "--task text-classification"
    return [
        f"teach {short(encoder)} mine.csv {task} --out teacher",
        f"build mine.csv --teacher teacher {task} --out cache.zarr",
        f"train cache.zarr --recipe kd --init-from-teacher {layers} --dev-split 10% --out student",
        "ship student shipped --int8",
    ]


def _python() -> str:
    """How this interpreter is called from here."""
    return short(sys.executable)


def short(path: str) -> str:
    """A path as seen from here, where that is below."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _command() -> str:
    """How kdcache is called in this shell."""
    return "kdcache" if shutil.which("kdcache") else f"{_python()} -m kdcache_cli"
