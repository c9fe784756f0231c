"""The command before a build where there is no teacher yet: teach."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache.errors import ConfigError
from kdcache_cli import options as o
from kdcache_cli import values as v
from kdcache_cli.output import print_json, print_table, show

SHOWN = ("accuracy", "f1", "micro_f1", "pearson", "mse")
CLASS_WEIGHTS = ("auto", "balanced", "none")


def teach(
    context: typer.Context,
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER", help="Folder or hub name of a pretrained model; safetensors only."
        ),
    ],
    train: o.Corpus,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the teacher to.")],
    task: o.TaughtTask = "text-classification",
    dev: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labelled documents to choose on."),
    ] = None,
    dev_split: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Without --dev: the share of each class set aside for it (10%)."
        ),
    ] = None,
    eval_file: Annotated[
        Path | None,
        typer.Option(
            "--eval", metavar="FILE", help="Labelled documents to score it on, not chosen on."
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(metavar="N", help="Passes over the documents; the best one is kept.")
    ] = 4,
    lr: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Learning rates to try (5e-5,2e-4).", callback=v.names),
    ] = None,
    class_weights: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="Weigh classes in the loss by N / (C * count): balanced, none, or auto, which "
            "does where one class has three times the documents of another.",
            callback=v.known("class weights", CLASS_WEIGHTS),
        ),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(metavar="N", help="Documents of a step.")] = 32,
    max_length: Annotated[
        int, typer.Option(metavar="TOKENS", help="Tokens of a document; longer ones are cut off.")
    ] = 128,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of the split, the head, dropout and order.")
    ] = 0,
    device: o.Device = "auto",
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    ignore_columns: o.IgnoreColumns = None,
    label_type: o.LabelType = None,
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Make a teacher of an encoder and labelled documents.

    Fits a head, fine-tunes once for each learning rate, scores every epoch on documents set aside
    and keeps the best. Started again after it was stopped, it goes on behind the last learning
    rate that it finished.
    """
    if dev is not None and dev_split is not None:
        raise ConfigError(
            "--dev and --dev-split both say which documents to choose on; give one of the two"
        )
    asked: dict[str, Any] = {
        "dev_split": dev_split,
        "learning_rates": None if lr is None else _rates(lr),
        "label_type": label_type,
    }
    from kdcache.teaching import teach as run

    result = run(
        encoder,
        o.one_corpus(train),
        out=out,
        task=task,
        dev=dev,
        eval_file=eval_file,
        epochs=epochs,
        class_weights=class_weights,  # type: ignore[arg-type]  # as above
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        device=device,
        **o.columns(context),
        progress=context.obj,
        **{name: value for name, value in asked.items() if value is not None},
    )
    if as_json:
        print_json({"folder": str(result.folder), "metrics": result.metrics})
    else:
        _print(result.metrics)
        print(f"Next: {shlex.join(_next(context, result.metrics))}")


def _rates(texts: list[str]) -> tuple[float, ...]:
    try:
        return tuple(map(float, texts))
    except ValueError as error:
        raise ConfigError(f"--lr takes learning rates as in 5e-5,2e-4; got {texts}") from error


def _next(context: typer.Context, metrics: dict[str, Any]) -> Iterator[str]:
    """The build that reads documents as the teacher has learnt to."""
    given, out = context.params, str(context.params["out"])
    yield from ("kdcache", "build", *given["train"], "--teacher", out, "--task", metrics["task"])
    yield from ("--max-length", str(given["max_length"]), "--out", f"{out}.cache")
    for name in ("text_column", "label_column", "ignore_columns", "label_type"):
        values = given[name] if isinstance(given[name], list) else [given[name]]
        for value in filter(None, values):
            yield from (f"--{name.replace('_', '-')}", value)


def _print(metrics: dict[str, Any]) -> None:
    by = metrics["chosen_by"]
    head = ("learning rate", "epoch", "loss", f"dev {by.replace('_', '-')}", "95% interval", "")
    print_table(head, list(_rows(metrics, by)), right=(0, 1, 2, 3))
    data = metrics["data"]
    print(f"\nTaught on {data['train']:,} documents, chosen on {data['dev']:,}.")
    if "evaluation" in metrics:
        scores = metrics["evaluation"]
        shown = [f"{name} {show(scores[name])}" for name in SHOWN if scores.get(name) is not None]
        seen = f" ({scores['seen']:,} of them taught or chosen on)" if scores["seen"] else ""
        print(f"On {scores['file']}, {scores['documents']:,} documents{seen}: {', '.join(shown)}.")


def _rows(metrics: dict[str, Any], by: str) -> Iterator[tuple[Any, ...]]:
    chosen = metrics["chosen"]
    start = {"epoch": 0, "loss": None, "dev": metrics["start"]["scores"]}
    for rate, epochs in [
        (None, [start]),
        *((point["learning_rate"], point["epochs"]) for point in metrics["grid"]),
    ]:
        for one in epochs:
            scores = one["dev"] or {}
            low_high = scores.get(f"{by}_interval")
            yield (
                "the start" if rate is None else f"{rate:g}",
                one["epoch"],
                show(one["loss"]),
                show(scores.get(by)),
                "" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}",
                _mark(one, rate, chosen),
            )


def _mark(epoch: dict[str, Any], rate: float | None, chosen: dict[str, Any]) -> str:
    if epoch["dev"] is None:
        return "diverged"
    return "chosen" if (rate, epoch["epoch"]) == (chosen["learning_rate"], chosen["epoch"]) else ""
