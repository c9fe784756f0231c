"""The commands before training: plan a corpus, build its cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache.errors import ConfigError
from kdcache.tasks import TASKS
from kdcache_cli import options as o
from kdcache_cli import values as v
from kdcache_cli.config import read_config
from kdcache_cli.output import print_json
from kdcache_cli.reports import print_bytes, print_cache, print_plan, print_proposals


def plan(
    context: typer.Context,
    corpus: o.Corpus,
    tokenizer: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder or hub name of the teacher's tokenizer.")
    ],
    task: o.Task,
    out: Annotated[str, typer.Option(metavar="PLAN", help="Folder or URL to write the plan to.")],
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    ignore_columns: o.IgnoreColumns = None,
    label_type: o.LabelType = None,
    limit: o.Limit = None,
    unit: o.Unit = None,
    max_length: o.MaxLength = None,
    part_tokens: o.PartTokens = None,
    seed: o.Seed = None,
    mask_probability: o.MaskProbability = None,
    views: o.Views = None,
    signal: o.Signal = None,
    for_: o.For = None,
    student_layers: o.StudentLayers = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Teacher whose signals are sized, if it does not lie with the tokenizer.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Propose the truest codecs that fit a size such as 20GB; of hidden states, those "
            "of the layers and positions of --signal.",
        ),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Tokenise a corpus and say what a build would make of it.

    Prints documents, tokens, their lengths and, for --signal, the bytes of the cache: exact, or
    estimates where arrays are compressed. No teacher runs.
    """
    from kdcache.building.describe import describe_bytes, describe_plan
    from kdcache.building.planner import plan as make
    from kdcache.store.io.download_cache import parse_bytes

    most = parse_bytes(budget, "--budget") if budget else None
    signal = _for(for_, signal, student_layers, teacher or tokenizer, task)
    wanted = bool(signal or budget)
    sized = _signals(signal or [], teacher or tokenizer, task) if wanted else None
    made = make(
        o.one_corpus(corpus),
        tokenizer=tokenizer,
        task=task,
        out=out,
        progress=context.obj,
        **o.plan_options(context),
    )
    if sized and most:
        _propose(made, sized, most, as_json)
        return
    size = describe_bytes(made, *sized) if sized else None
    _report(describe_plan(made), size, as_json)


def _for(
    recipes: str | None, signal: list[str] | None, layers: int | None, teacher: str, task: str
) -> list[str] | None:
    """The signals that recipes need, where they are named in the place of signals; says them."""
    if recipes is None:
        if layers is not None:
            raise ConfigError("--student-layers is for --for, which names recipes; leave it out")
        return signal
    if signal:
        raise ConfigError(
            "--for chooses the signals: leave --signal out, or --for and give all signals"
        )
    from kdcache.tasks import as_task
    from kdcache.training.recipe import load_recipe
    from kdcache.training.requirements import beside_signals
    from kdcache.training.wanted_signals import signals_of_teacher

    named = [load_recipe(name.strip()) for name in recipes.split(",")]
    found = signals_of_teacher(named, teacher, task, layers)
    told = " ".join(f"--signal {text}" for text in found)
    print(told or "no signal is needed: those of the task will do", file=sys.stderr)
    kept = found or as_task(task).signals
    for name, why in beside_signals(named, kept, teacher, task, layers).items():
        print(f"{name} wants more than these signals: {why}", file=sys.stderr)
    return found


def _propose(plan: Any, sized: tuple[Any, Any], budget: int, as_json: bool) -> None:
    from kdcache.building.budget import propose
    from kdcache.building.describe import describe_plan

    signals, shape = sized
    found = [proposal.to_json() for proposal in propose(plan, shape, budget, signals)]
    if as_json:
        print_json({**describe_plan(plan), "budget": budget, "proposals": found})
        return
    print_plan(describe_plan(plan))
    print_proposals(budget, found)


def _signals(texts: list[str], teacher: str, name: str) -> tuple[Any, Any]:
    """Signals and the shape of the teacher they are asked of; ConfigError if it has none such."""
    from kdcache.models import check_taps
    from kdcache.models.auto import load_config
    from kdcache.models.teacher import model_sizes
    from kdcache.signals import parse_all, taps_of
    from kdcache.tasks import as_task

    task, signals = as_task(name), parse_all(texts)
    config = load_config(teacher)
    shape = model_sizes(config, task)
    for signal in signals.values():
        signal.check(task, shape)
    check_taps(config, taps_of(signals.values()))
    return signals, shape


def _report(plan: dict[str, Any], size: dict[str, Any] | None, as_json: bool) -> None:
    if as_json:
        print_json({**plan, "bytes": size} if size else plan)
        return
    print_plan(plan)
    if size:
        print_bytes(size)


def build(
    context: typer.Context,
    corpus: o.CorpusOrPlan,
    teacher: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Folder or hub name of the teacher; safetensors weights only."
        ),
    ],
    task: o.Task,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="CACHE", help="Folder or URL to write the cache to (not for --dry-run)."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="TOML",
            help="File of these options, as in batch-tokens = 4096; the command line wins.",
            callback=read_config,
            is_eager=True,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the exact bytes; write nothing.")
    ] = False,
    signal: o.Signal = None,
    for_: o.For = None,
    student_layers: o.StudentLayers = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Its tokenizer, if it does not lie with the teacher."),
    ] = None,
    device: o.Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Of the forward: fp32, bf16 or fp16.",
            callback=v.known("dtype", o.DTYPES),
        ),
    ] = "fp32",
    batch_tokens: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=1, help="Tokens of a forward, padding included."),
    ] = 8192,
    trust_remote_code: o.TrustRemoteCode = False,
    keep_teacher_weights: Annotated[
        bool,
        typer.Option(
            "--keep-teacher-weights",
            help="Store the weights too, to make students of teacher layers elsewhere.",
        ),
    ] = False,
    same_teacher: Annotated[
        bool,
        typer.Option(
            "--same-teacher",
            help="Go on with an unfinished cache from before format 3, which cannot tell whether "
            "its teacher's configuration has changed: it has not.",
        ),
    ] = False,
    teacher_task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Of a language model over a plan of classes or values: what it says of every "
            "token of the texts as they are. `kdcache merge` joins it as a further teacher.",
            callback=v.known("task", TASKS),
        ),
    ] = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    ignore_columns: o.IgnoreColumns = None,
    label_type: o.LabelType = None,
    limit: o.Limit = None,
    unit: o.Unit = None,
    max_length: o.MaxLength = None,
    part_tokens: o.PartTokens = None,
    seed: o.Seed = None,
    mask_probability: o.MaskProbability = None,
    views: o.Views = None,
    as_json: o.AsJson = False,
) -> None:
    """Run the teacher once over a corpus and write the cache.

    Started again, a build goes on at the first part that is not finished.
    """
    signal = _for(for_, signal, student_layers, teacher, task)
    asked = {
        "teacher": teacher,
        "task": task,
        "signals": signal or (),
        "tokenizer": tokenizer,
        "trust_remote_code": trust_remote_code,
        "teacher_task": teacher_task,
        "progress": context.obj,
        **o.plan_options(context),
    }
    if dry_run:
        _estimate(o.one_corpus(corpus), asked, as_json)
        return
    if out is None:
        raise ConfigError("build needs --out, the folder to write the cache to")
    from kdcache.building.builder import build as make
    from kdcache.building.describe import describe_cache

    cache = make(
        o.one_corpus(corpus),
        out=out,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        keep_teacher_weights=keep_teacher_weights,
        same_teacher=same_teacher,
        **asked,
    )
    (print_json if as_json else print_cache)(describe_cache(cache))


def _estimate(corpus: Any, asked: dict[str, Any], as_json: bool) -> None:
    from kdcache.building.builder import estimate
    from kdcache.building.describe import describe_bytes, describe_plan

    found = estimate(corpus, **asked)
    size = describe_bytes(found.plan, found.signals, found.shape)
    _report(describe_plan(found.plan), size, as_json)
