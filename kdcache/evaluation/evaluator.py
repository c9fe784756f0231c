"""Evaluate a model on a file: task scores, agreement with the teacher, size and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kdcache.building.planner import scratch_folder
from kdcache.building.trimmed_cache import as_read_by
from kdcache.corpora.files import require_no_input
from kdcache.corpora.numbering import Numbering
from kdcache.errors import ConfigError
from kdcache.evaluation.agreement import Agreement
from kdcache.evaluation.opened import Reading, opened, task_of
from kdcache.evaluation.predictions import write_predictions
from kdcache.evaluation.scoring import (
    BATCH,
    Predictions,
    forward,
    predict,
    require_finite,
    score_teacher,
    scores,
    token_budget,
)
from kdcache.manifest import Json
from kdcache.models import Teacher, Tokenizer, classes_of, load_config
from kdcache.models.auto import require_label_kind
from kdcache.plans import Docs, Plan
from kdcache.plans.batch import length_batches
from kdcache.progress import Progress, Shown, short, shown
from kdcache.store import Cache, Place, open_cache
from kdcache.store.io.durable_writes import require_writable, writing
from kdcache.tasks import TASKS

TIMED_DOCS = 512


def evaluate(
    model: str | Path,
    file: Any,
    *,
    cache: Place | Cache | None = None,
    teacher: str | Path | None = None,
    batch_size: int = BATCH,
    device: str = "auto",
    text_columns: Sequence[str] = (),
    label_column: str | Sequence[str] | None = None,
    ignore_columns: Sequence[str] = (),
    limit: int | None = None,
    max_length: int | None = None,
    predictions: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> Json:
    """Score the model in the folder `model` on the documents of `file`.

    Args:
        model: a folder `train` wrote, or any model folder of one of the tasks.
        file: a corpus, as in `plan`, with labels unless the task is language modelling.
        cache: where its documents are among those of `file`, agreement with the teacher is told.
        teacher: folder of the teacher, to score and time it on the same documents.
        batch_size: documents of mean length in a forward.
        max_length: tokens a document may have; what the model was trained with, else 128.
        predictions: for classification, a CSV file to write each document's label, prediction and
            confidence to, in the order of `file`.
        trust_remote_code: import the class of a student or teacher that is somebody's own module.

    Returns the scores by name: see `metrics`; cross-entropies and divergences in nats, speed in
    documents a second.

    Raises:
        ConfigError: options or models that do not go together.
        ModelError: a model cannot be loaded, or does not take the documents.
        CorpusError: the documents cannot be read, or have a label never seen in training.
        CacheError: the cache cannot be read.
    """
    progress = shown(progress)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more; got {batch_size}")
    task = task_of(model)
    task.require(classes_of(model, task).names or [])
    if task.labelled:
        for source in (model, *([] if teacher is None else [teacher])):
            require_label_kind(load_config(source), source)
    if predictions is not None:
        if not task.predicted:
            able = " and ".join(name for name, known in TASKS.items() if known.predicted)
            raise ConfigError(f"predictions are written for {able} only, not {task}")
        require_no_input(Path(predictions), file)
        require_writable(Path(predictions), file=True)
    known = cache if isinstance(cache, Cache) or cache is None else open_cache(cache)
    known = as_read_by(known, model)
    reading = Reading(
        text_columns=text_columns,
        label_column=label_column,
        ignore_columns=ignore_columns,
        limit=limit,
        max_length=max_length,
    )
    made = opened(model, task, known, device=device, trust_remote_code=trust_remote_code)
    student, tokenizer = made.loaded, made.tokenizer
    with scratch_folder(None) as scratch:
        plan = made.plan(file, reading, scratch, progress)
        made.require_reads(plan, file, progress)
        agreement = Agreement(plan, known, student.shape.outputs) if known is not None else None
        budget = token_budget(plan, batch_size)
        label, total = f"evaluating {short(model)} on {short(file)}", plan.documents
        with progress.bar(label, unit="documents", total=total) as advance:
            result = _predict(student, plan, budget, agreement, advance)
        _say_renumbering(plan, result, progress)
        told = task.scored(plan.config.classes or [])
        report = {
            "task": task.name,
            **({"scored": told} if told else {}),
            "documents": plan.documents,
            "parameters": student.identity["parameters"],
            **scores(plan, result),
        }
        if agreement is not None:
            report["teacher_rows"] = agreement.report()
        if predictions is not None:
            with writing(Path(predictions)):
                write_predictions(Path(predictions), plan, result.logits)
        trust = trust_remote_code
        report |= _speed(student, plan, tokenizer, batch_size, teacher, device, trust, progress)
    return report


def _predict(
    student: Teacher,
    plan: Plan,
    budget: int,
    agreement: Agreement | None,
    advance: Callable[[int], None],
) -> Predictions:
    def seen(docs: Docs, logits: torch.Tensor) -> None:
        require_finite(student.identity["name"], logits)
        if agreement is not None:
            agreement.add(docs, logits)
        advance(len(docs))

    return predict(student.model, plan, length_batches(plan, plan.docs, budget), seen)


def _say_renumbering(plan: Plan, result: Predictions, progress: Progress) -> None:
    if plan.label_kind.numbered:
        numbering = Numbering()
        numbering.add(plan.labels(plan.docs), result.logits.argmax(1))
        if (warning := numbering.warning(plan.config.classes)) is not None:
            progress.say(warning)


def _speed(
    student: Teacher,
    plan: Plan,
    tokenizer: Tokenizer,
    batch_size: int,
    teacher: str | Path | None,
    device: str,
    trust_remote_code: bool,
    progress: Progress,
) -> Json:
    """Documents a second of the student, and of the teacher with its scores where it is given."""
    budget = token_budget(plan, batch_size)
    report: Json = {"documents_per_s": _rate(student, plan, budget)}
    if teacher is not None:
        loaded, teacher_scores = score_teacher(
            teacher,
            plan,
            tokenizer,
            plan.docs,
            batch_size=batch_size,
            device=device,
            progress=progress,
            trust_remote_code=trust_remote_code,
        )
        rate = _rate(loaded, plan, budget)
        parameters = loaded.identity["parameters"]
        report["teacher"] = {"parameters": parameters, **teacher_scores, "documents_per_s": rate}
        report["speedup"] = report["documents_per_s"] / rate
    return report


def _rate(model: Teacher, plan: Plan, budget: int) -> float:
    """Documents a second over a sample, timed after a warm-up forward."""
    sample = plan.docs[:TIMED_DOCS]
    for _ in forward(model.model, plan, length_batches(plan, sample[:8], budget)):
        pass
    started = time.perf_counter()
    for _ in forward(model.model, plan, length_batches(plan, sample, budget)):
        pass
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return len(sample) / (time.perf_counter() - started)
