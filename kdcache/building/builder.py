"""Build a cache: run the teacher once over every document and store its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from kdcache.building.asked import is_plan, reading_task, require_planned, wanted_signals
from kdcache.building.creating import create_cache, require_vouched
from kdcache.building.filling import fill
from kdcache.building.labels_asked import labels_asked, require_labels
from kdcache.building.planner import PlanOptions, make_plan, scratch_folder
from kdcache.building.training_note import length_note
from kdcache.errors import ConfigError
from kdcache.labels import UNKNOWN
from kdcache.models import Tokenizer, load_config, load_teacher, load_tokenizer
from kdcache.models.classifier_outputs import outputs_of
from kdcache.models.teacher import check_fit, model_sizes
from kdcache.models.token_map import own_tokenizer, processing_difference
from kdcache.plans import Plan
from kdcache.progress import Progress, Shown, shown
from kdcache.signals import ModelSizes, Signal
from kdcache.store import Cache, Place, Writer, locate, open_cache, open_plan
from kdcache.tasks import Task, as_task


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
    reading = reading_task(corpus, task, teacher_task)
    wanted = wanted_signals(corpus, teacher, task, reading, signals, trust_remote_code, options)
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
        require_planned(plan, tokens)
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
    require_vouched(writer.cache, same_teacher, progress)
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
    reading = reading_task(corpus, task, teacher_task)
    wanted = wanted_signals(corpus, teacher, task, reading, signals, trust_remote_code, options)
    config = load_config(teacher, trust_remote_code=trust_remote_code)
    tokens = load_tokenizer(tokenizer or teacher, trust_remote_code=trust_remote_code)
    with _planned(corpus, tokens, task, config, None, progress, options) as plan:
        assert plan.sha256  # cached while tokens and labels are still there
        sizes = model_sizes(config, reading)
        require_labels(plan, wanted, sizes)
    return Estimate(plan=plan.read_as(reading), signals=wanted, shape=sizes)


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
