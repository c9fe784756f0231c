"""The command that trains many students and tells which one to take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_fields, print_json, print_table, print_title, size

if TYPE_CHECKING:
    from kdcache.sweeping.record import Mean, Record, Row
    from kdcache.sweeping.result import SweepResult


def sweep(
    context: typer.Context,
    cache: o.Cache,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the sweep; it goes on in one that is.")
    ],
    grid: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file of axes: a list of values for each."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=A,B,C",
            help="An axis: recipe, layers or width (of the teacher's), student, init_from_teacher, "
            "config, vocabulary, epochs, lr, batch_size, seed, or a field of the recipe, such as "
            "losses.kl.temperature; repeat it. LOW..HIGH is a range for --search.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Students of each setting, with the seeds 0 to N-1."),
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Let Optuna draw N settings from the axes, by their dev scores."
        ),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Labelled documents to choose on: weights and student."),
    ] = None,
    dev_split: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Choose on a share of the cache's, such as 10%."),
    ] = None,
    dev_every: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Score at every epoch, or every N steps.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(metavar="N", help="Stop after N scores in a row without a better one."),
    ] = None,
    eval_file: Annotated[
        str | None,
        typer.Option(
            "--eval", metavar="FILE", help="Labelled documents to score on; nothing is chosen here."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Ship and measure this teacher (the cache's)."),
    ] = None,
    no_ship: Annotated[
        bool, typer.Option("--no-ship", help="Train only: no sizes, no latencies, no int8.")
    ] = False,
    max_mb: Annotated[
        float | None,
        typer.Option(metavar="MB", help="Pick a student whose shipped files take no more."),
    ] = None,
    max_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Pick one that takes no more for a text, one thread."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Pick one at most so far below the teacher on dev."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Hold students against the teacher on each slice of the dev file by COLUMN, and "
            "--max-drop with them; length cuts by tokens. Repeat it.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Processes that train side by side.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads of each (all, shared out).")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="auto, cpu or cuda, the first GPU that is visible."),
    ] = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Train many students from a cache, and tell which one to take.

    Students are all combinations of the axes. Each is a run folder as train writes it, shipped in
    float32 and in int8 and measured beside the teacher. The best on the dev set is picked, within
    --max-mb, --max-ms and --max-drop, with --by on every slice; what the cache takes is `plan
    --budget`. Started again, it trains what is not trained yet.
    """
    from kdcache.sweeping.record import FAILED
    from kdcache.sweeping.run import sweep as run

    result = run(
        cache,
        out=out,
        grid=grid,
        overrides=overrides or [],
        seeds=seeds,
        search=search,
        dev=dev,
        dev_split=dev_split,
        dev_every=dev_every,
        patience=patience,
        eval_file=eval_file,
        teacher=teacher,
        ship=not no_ship,
        max_mb=max_mb,
        max_ms=max_ms,
        max_drop=max_drop,
        by=by or (),
        workers=workers,
        threads=threads,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=context.obj,
    )
    if as_json:
        print_json({"folder": str(result.folder), **result.record.to_json()})
    else:
        print_sweep(result)
    if all(one.state == FAILED for one in result.record.students):
        raise typer.Exit(1)


def print_sweep(result: SweepResult) -> None:
    """The table, the student that was picked, or which limit cannot be met, and what to know."""
    record = result.record
    chosen, scored = record.dev, record.eval
    print_fields(
        {
            "sweep": str(result.folder),
            "students": len(record.students),
            "chosen on": chosen and f"{chosen['documents']:,} documents, {chosen['source']}",
            "only scored on": scored and scored["file"],
        }
    )
    print_title(f"{record.metric.replace('_', ' ')}: mean ± standard deviation over n seeds")
    header = ("", "weights", "dev", "eval", "n", "parameters", "size", "p50 ms", "")
    print_table(header, [list(_cells(row)) for row in record.rows], right=range(2, 8))
    if record.by:
        _print_slices(record)
    _print_choice(result, record)
    for note in record.notes:
        print(f"{note[:1].upper()}{note[1:]}.")


def _cells(row: Row) -> Iterator[Any]:
    yield row.name
    yield row.kind
    yield _mean(row.dev)
    yield _mean(row.eval)
    yield max((mean.n for mean in (row.dev, row.eval) if mean is not None), default=None)
    yield row.parameters
    yield None if row.bytes is None else size(row.bytes)
    yield row.p50_ms
    yield "picked" if row.picked else ""


def _mean(mean: Mean | None) -> str | None:
    if mean is None:
        return None
    return f"{mean.mean:.4f}" + ("" if mean.sd is None else f" ± {mean.sd:.4f}")


def _print_slices(record: Record) -> None:
    """The slice on which each loses most; of several seeds, on which the one to take does."""
    from kdcache.evaluation.told import between

    found = [(row, row.worst) for row in record.rows if row.worst is not None]
    metric = next((worst.metric for _, worst in found), record.metric).replace("_", " ")
    print_title(f"worst slice by {' and '.join(record.by)}: {metric} below the teacher in fp32")
    rows = [
        (row.name, row.kind, f"{worst.drop:.4f}", between(worst.interval), worst.documents,
         worst.where, "picked" if row.picked else "")
        for row, worst in found
    ]  # fmt: skip
    header = ("", "weights", "drop", "95% interval", "documents", "slice", "")
    print_table(header, rows, right=(2, 3, 4))


def _print_choice(result: SweepResult, record: Record) -> None:
    row = record.picked
    if row is not None:
        print(f"Picked: {row.name}, in {row.kind}: {result.picked}")
        if row.bytes is not None:
            print(f"Shipped: {result.folder / 'shipped' / str(record.pick) / row.kind}")
    for sentence in record.unmet:
        print(f"{sentence[:1].upper()}{sentence[1:]}.")
    if record.nearest:
        near = (record.rows[place] for place in record.nearest)
        print(f"Nearest: {'; '.join(f'{row.name} in {row.kind}' for row in near)}.")
