"""Evaluate a model on a file: task scores, agreement with the teacher, size and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kdcache.building.planner import PlanOptions, make_plan, scratch_folder
from kdcache.building.training_note import (
    require_same_texts,
    require_trained_vocabulary,
    texts_of,
    trained_plan,
)
from kdcache.corpora.files import require_no_input
from kdcache.corpora.numbering import Numbering
from kdcache.corpora.readers import name_of
from kdcache.errors import ConfigError, CorpusError, ModelError
from kdcache.evaluation.agreement import Agreement
from kdcache.evaluation.predictions import write_predictions
from kdcache.evaluation.scoring import (
    BATCH,
    Predictions,
    forward,
    predict,
    require_finite,
    require_fit,
    score_teacher,
    scores,
    settle,
    token_budget,
)
from kdcache.manifest import Json
from kdcache.models import Teacher, Tokenizer, classes_of, load_config, load_teacher, load_tokenizer
from kdcache.models.auto import require_label_kind
from kdcache.models.token_map import vocabulary_apart
from kdcache.plans import Docs, Plan
from kdcache.plans.batch import length_batches
from kdcache.progress import Progress, Shown, short, shown
from kdcache.store import Cache, Place, open_cache, open_plan, write_plan
from kdcache.store.io.durable_writes import require_writable, writing
from kdcache.tasks import TASKS, Task

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
    student = load_teacher(model, task=task, device=device, trust_remote_code=trust_remote_code)
    known = cache if isinstance(cache, Cache) or cache is None else open_cache(cache)
    trained = trained_plan(model, known, task)
    options = _options(trained, task, max_length)
    options["text_columns"], options["label_column"] = text_columns, label_column
    options["ignore_columns"], options["limit"] = ignore_columns, limit
    tokenizer = load_tokenizer(model)
    require_trained_vocabulary(model, tokenizer)
    if known is not None and (apart := vocabulary_apart(known, tokenizer.plain)):
        raise ModelError(f"the model's tokenizer is not the cache's: {apart}; leave --cache out")
    with scratch_folder(None) as scratch:
        plan = _plan(file, model, tokenizer, task, scratch, options, texts_of(trained), progress)
        _require_labels(plan, file)
        require_fit(student.model, plan, student.identity["name"])
        require_same_texts(model, texts_of(trained), plan, file)
        settle(student.model, plan, student.identity["name"], progress)
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


def task_of(model: str | Path) -> Task:
    """The task of a model folder, from its architecture; ModelError if it is none of ours."""
    heads = load_config(model).architectures or []
    for head in heads:
        for task in TASKS.values():
            if head.endswith(task.heads):
                return task
    raise ModelError(f"{model} is a {', '.join(heads) or 'model without a head'}: not for any task")


def _options(trained: Json, task: Task, length: int | None) -> PlanOptions:
    """Documents are cut and masked as in training, where that is known."""
    planned = trained.get("max_length", 128)
    options: PlanOptions = {"max_length": planned if length is None else length}
    if "mask_probability" in task.options and trained:
        options["mask_probability"], options["seed"] = trained["mask_probability"], trained["seed"]
    return options


def _plan(
    file: Any,
    model: str | Path,
    tokenizer: Tokenizer,
    task: Task,
    scratch: Path,
    options: PlanOptions,
    like: Sequence[str],
    progress: Progress,
) -> Plan:
    made = make_plan(
        file,
        tokenizer,
        scratch=scratch,
        task=task,
        classes=classes_of(model, task),
        like=like,
        progress=progress,
        **options,
    )
    write_plan(scratch / "plan.zarr", made)
    return open_plan(scratch / "plan.zarr")


def _require_labels(plan: Plan, file: Any) -> None:
    if plan.task.labelled and plan.labelled == 0:
        raise CorpusError(
            f"{name_of(file)} has no labels to score against; name them with --label-column"
        )


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
