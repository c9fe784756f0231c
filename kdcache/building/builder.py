"""Build a cache: run the teacher once over every document and store its outputs."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

from kdcache.building.artifacts import artifact_sources
from kdcache.building.filling import fill
from kdcache.building.labels_asked import labels_asked, require_labels
from kdcache.building.planner import PlanOptions, make_plan, scratch_folder
from kdcache.building.training_note import length_note
from kdcache.errors import ConfigError, MismatchError, ModelError
from kdcache.labels import UNKNOWN, kind_of
from kdcache.manifest import NAMED, Json
from kdcache.models import Teacher, Tokenizer, check_taps, load_config, load_teacher, load_tokenizer
from kdcache.models.auto import problem_type_of, require_label_kind
from kdcache.models.teacher import check_fit, model_sizes
from kdcache.models.token_map import own_tokenizer, processing_difference
from kdcache.models.tokenizer import outputs_of
from kdcache.plans import Plan
from kdcache.plans.identity import has_configuration, say_unvouched
from kdcache.progress import Progress, Shown, shown
from kdcache.signals import ModelSizes, Signal, artifacts, as_outputs, parse_all, taps_of
from kdcache.store import (
    Cache,
    Place,
    Root,
    Writer,
    cache_record,
    create,
    locate,
    open_cache,
    open_plan,
    signal_layouts,
)
from kdcache.store.format.manifest_schema import OF_TASK
from kdcache.tasks import Task, as_task, over


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a build would make: known exactly before the teacher runs."""

    plan: Plan
    signals: dict[str, Signal]
    shape: ModelSizes


def build(
    corpus: Any,
    *,
    teacher: str | Path,
    task: str | Task,
    out: Place,
    signals: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    device: str = "auto",
    dtype: str = "fp32",
    batch_tokens: int = 8192,
    trust_remote_code: bool = False,
    keep_teacher_weights: bool = False,
    same_teacher: bool = False,
    teacher_task: str | None = None,
    progress: Shown = None,
    **options: Unpack[PlanOptions],
) -> Cache:
    """Run `teacher` once over `corpus` and write the cache to `out`, a folder or a URL.

    A cache of the same plan, teacher and signals already at `out` is resumed at its first missing
    part. Interrupted at any moment, even by SIGKILL, all committed parts stay.

    Args:
        corpus: as in `plan`, or the folder of a plan (then `options` must be left out).
        teacher: folder or hub name that transformers' Auto classes load; safetensors only.
        task: a name of `TASKS`, such as "text-classification" or "masked-lm".
        signals: such as "logits:topk,k=64" and "hidden:layers=2-4-6,positions=cls,dtype=int8";
            none: dense logits for classification, the 64 likeliest tokens for language modelling.
        tokenizer: folder or hub name if it does not lie with the teacher.
        device: "auto", "cpu", "cuda" or "cuda:1".
        dtype: of the teacher's forward: "fp32", "bf16" or "fp16".
        batch_tokens: most tokens, padding included, of a forward.
        keep_teacher_weights: store the weights too, for students made of teacher layers elsewhere.
        same_teacher: go on with an unfinished cache from before format 3, which does not tell the
            configuration of its teacher: the caller vouches that it has not changed.
        teacher_task: of a teacher of another task than the plan: a language model over a plan of
            classes or values says what it does at every token of its documents, none of which is
            masked. `corpus` is then a plan.
        options: see `PlanOptions`.

    Raises:
        ConfigError: a signal or option cannot be served.
        CorpusError: the corpus cannot be read, or its labels are not what the teacher knows.
        ModelError: the teacher cannot be loaded, or does not give what a signal is made of.
        MismatchError: `out` holds another cache, or one that only `same_teacher` goes on with.
        CacheError: `out` cannot be written.
    """
    progress = shown(progress)
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be 1 or more; got {batch_tokens}")
    task = as_task(task)
    reading = _reading(corpus, task, teacher_task)
    wanted = _check(corpus, teacher, task, reading, signals, trust_remote_code, options)
    load = partial(
        load_teacher,
        teacher,
        task=reading,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    config = load_config(teacher, trust_remote_code=trust_remote_code)
    sizes = model_sizes(config, reading)
    # Tags that are none, and documents without a label that is asked for, are found beforehand.
    loaded = None if task.words or labels_asked(wanted, sizes) else load()
    tokens = load_tokenizer(tokenizer or teacher, trust_remote_code=trust_remote_code)
    with _planned(corpus, tokens, task, config, out, progress, options) as plan:
        _require_planned(plan, tokens)
        plan = plan.read_as(reading)
        require_labels(plan, wanted, sizes)
        loaded = loaded or load()
        own = tokens if tokenizer is None else own_tokenizer(teacher)
        check_fit(loaded, plan, tokens, own)
        if own is not None and (parts := processing_difference(tokens, own)):
            progress.say(
                f"{tokens.source} numbers tokens as the teacher's tokenizer does, but differs from "
                f"it in {parts}: texts may be cut into other tokens than the teacher was made for"
            )
        if (note := length_note(teacher, plan)) is not None:
            progress.say(note)
        create_cache(locate(out), plan, loaded, wanted, tokens, keep_teacher_weights)
    writer = Writer(locate(out))
    _require_vouched(writer.cache, same_teacher, progress)
    fill(writer, loaded, batch_tokens, progress)
    return open_cache(out)


def estimate(
    corpus: Any,
    *,
    teacher: str | Path,
    task: str | Task,
    signals: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    trust_remote_code: bool = False,
    teacher_task: str | None = None,
    progress: Shown = None,
    **options: Unpack[PlanOptions],
) -> Estimate:
    """Plan a build, reading the teacher's configuration but not its weights; nothing is written."""
    progress = shown(progress)
    task = as_task(task)
    reading = _reading(corpus, task, teacher_task)
    wanted = _check(corpus, teacher, task, reading, signals, trust_remote_code, options)
    config = load_config(teacher, trust_remote_code=trust_remote_code)
    tokens = load_tokenizer(tokenizer or teacher, trust_remote_code=trust_remote_code)
    with _planned(corpus, tokens, task, config, None, progress, options) as plan:
        assert plan.sha256  # cached while tokens and labels are still there
        sizes = model_sizes(config, reading)
        require_labels(plan, wanted, sizes)
    return Estimate(plan=plan.read_as(reading), signals=wanted, shape=sizes)


def _check(
    corpus: Any,
    teacher: str | Path,
    task: Task,
    reading: Task,
    signals: Sequence[str],
    trust_remote_code: bool,
    options: PlanOptions,
) -> dict[str, Signal]:
    """Refuse what cannot work before anything heavy is loaded; `reading` is the teacher's task."""
    wanted = parse_all(signals or reading.signals)
    config = load_config(teacher, trust_remote_code=trust_remote_code)
    if reading.labelled:
        require_label_kind(config, teacher)
        wanted = as_given(wanted, config, teacher)
    shape = model_sizes(config, reading)
    for signal in wanted.values():
        signal.check(reading, shape)
    check_taps(config, taps_of(wanted.values()))
    if is_plan(corpus):
        if options:
            raise ConfigError(
                f"{corpus} is a plan: it fixes {', '.join(options)} already; leave that out, or "
                "build from the corpus itself"
            )
        planned = open_plan(corpus).task
        if planned != task:
            raise ConfigError(
                f"{corpus} is a plan for {planned}, not {task}: give --task {planned}, or plan anew"
            )
    return wanted


def _reading(corpus: Any, task: Task, teacher: str | None) -> Task:
    """What the teacher is run for over a plan of `task`; ConfigError where it cannot be."""
    reading = task if teacher is None else over(task, as_task(teacher))
    if reading != task and not is_plan(corpus):
        raise ConfigError(
            f"--teacher-task {teacher} runs a teacher over a plan for {task} that is there: make "
            "it first (`kdcache plan --out PLAN`), and give its folder"
        )
    return reading


def as_given(signals: dict[str, Signal], config: Any, teacher: str | Path) -> dict[str, Signal]:
    """Signals that keep outputs as what they are: those of several classes or values are raw."""
    kind = kind_of(problem_type_of(config), int(config.num_labels))
    assert kind is not None
    return {
        name: as_outputs(signal, kind, f"the teacher {teacher}") for name, signal in signals.items()
    }


def is_plan(corpus: Any) -> bool:
    """Whether `corpus` is the folder or URL of a plan rather than documents."""
    return isinstance(corpus, (str, Root)) and (locate(corpus) / "zarr.json").is_file()


@contextmanager
def _planned(
    corpus: Any,
    tokenizer: Tokenizer,
    task: Task,
    config: Any,
    out: Place | None,
    progress: Progress,
    options: PlanOptions,
) -> Iterator[Plan]:
    """The plan of a corpus, its files alive inside the block."""
    if is_plan(corpus):
        yield open_plan(corpus)
        return
    complete = out is not None and (locate(out) / "complete" / "zarr.json").is_file()
    with scratch_folder(out, anywhere=complete) as scratch:
        yield make_plan(
            corpus,
            tokenizer,
            scratch=scratch,
            task=task,
            classes=outputs_of(config) if task.labelled else UNKNOWN,
            progress=progress,
            **options,
        )


def _require_planned(plan: Plan, tokens: Tokenizer) -> None:
    """Raise ModelError unless `tokens`, which the cache will keep, made the plan."""
    planned = plan.config.tokenizer
    if tokens.identity["sha256"] != planned["sha256"]:
        raise ModelError(
            f"the plan's tokenizer {planned['name']} is not that of {tokens.source} (their SHA-256 "
            "differ): plan with the teacher's own, or name the plan's with --tokenizer"
        )


def create_cache(
    out: Root,
    plan: Plan,
    teacher: Teacher,
    signals: dict[str, Signal],
    tokenizer: Tokenizer,
    keep_weights: bool,
) -> None:
    """Write a cache without a part, or see that what is there is the same; see `store.create`."""
    of_task = {} if plan.read_for is None else {OF_TASK: plan.task.name}
    identity = {**teacher.identity, **of_task}
    record = cache_record(
        plan, teacher=identity, shape=teacher.shape, signals=signals, software=software()
    )
    files = cache_files(plan, teacher, signals, tokenizer, weights=keep_weights)
    create(out, record, plan, signal_layouts(plan, signals, teacher.shape), files)


def _require_vouched(cache: Cache, same_teacher: bool, progress: Progress) -> None:
    """MismatchError for an unfinished cache without its teacher's configuration, unless told."""
    if cache.complete or has_configuration(cache.manifest["teacher"]):
        return
    if not same_teacher:
        raise MismatchError(
            f"{cache.path} is unfinished and does not tell the configuration of its teacher, as "
            f"caches before format {NAMED}: if that has not changed since, go on with "
            "--same-teacher; else choose another output folder"
        )
    say_unvouched(progress, [(cache.path, cache.manifest["teacher"])])


def cache_files(
    plan: Plan,
    teacher: Teacher,
    signals: Mapping[str, Signal],
    tokenizer: Tokenizer,
    *,
    weights: bool,
) -> dict[str, bytes | Path]:
    """Files a cache keeps, by name: tokenizer, configuration or weights, artifacts of signals."""
    files: dict[str, bytes | Path] = {f"tokenizer/{n}": b for n, b in tokenizer.files().items()}
    teacher_files = teacher.files(weights=weights)
    files.update({f"teacher/{name}": content for name, content in teacher_files.items()})
    files |= artifacts(signals.values(), plan.task, teacher.shape, artifact_sources(plan, teacher))
    return files


def software() -> Json:
    """Versions that can change what a teacher says."""
    names = ("kdcache", "torch", "transformers", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
