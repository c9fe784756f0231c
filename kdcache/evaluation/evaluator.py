"""Evaluate a model on a file: task scores, agreement with the teacher, size and speed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from kdcache.building.planner import scratch_folder
from kdcache.building.trimmed_cache import as_read_by
from kdcache.corpora.files import require_no_input
from kdcache.corpora.numbering import Numbering
from kdcache.errors import ConfigError
from kdcache.evaluation.agreement import Agreement
from kdcache.evaluation.cuts import read_cuts, with_lengths
from kdcache.evaluation.opened import Opened, Reading, documents_of, opened, task_of
from kdcache.evaluation.predictions import write_predictions
from kdcache.evaluation.scoring import (
    BATCH,
    Predictions,
    predict,
    require_finite,
    scores,
    token_budget,
)
from kdcache.evaluation.shared_teacher import SharedTeacher, rate
from kdcache.evaluation.slices import require_sliced, sliced
from kdcache.evaluation.told import Scores
from kdcache.models import classes_of, load_config
from kdcache.models.auto import require_label_kind
from kdcache.plans import Docs, Plan
from kdcache.plans.batch import length_batches
from kdcache.progress import Progress, Shown, short, shown
from kdcache.store import Cache, Place, open_cache
from kdcache.store.io.durable_writes import require_writable, writing
from kdcache.tasks import TASKS, Task


def evaluate(
    model: str | Path,
    file: Any,
    *,
    cache: Place | Cache | None = None,
    teacher: str | Path | SharedTeacher | None = None,
    batch_size: int = BATCH,
    device: str = "auto",
    text_columns: Sequence[str] = (),
    label_column: str | Sequence[str] | None = None,
    ignore_columns: Sequence[str] = (),
    limit: int | None = None,
    max_length: int | None = None,
    by: str | Sequence[str] = (),
    predictions: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> Scores:
    """Score the model in the folder `model` on the documents of `file`.

    Args:
        model: a folder `train` wrote, or any model folder of one of the tasks.
        file: a corpus, as in `plan`, with labels unless the task is language modelling.
        cache: where its documents are among those of `file`, agreement with the teacher is told.
        teacher: folder of the teacher, to score and time it on the same documents, which it reads
            by its own tokenizer; as a `SharedTeacher` it is run once for several students.
        batch_size: documents of mean length in a forward.
        max_length: tokens a document may have; what the model was trained with, else 128.
        by: columns of `file` by whose values documents are also scored slice by slice, such as
            "domain"; "length" cuts by tokens where no column is called so.
        predictions: for classification, a file to write the text, slices, label, prediction and
            probabilities of each document, or word of it, to, in the order of `file`: JSON lines
            where its name ends in .jsonl, else CSV.
        trust_remote_code: run code that comes with a student or teacher.

    Returns the scores by name: see `metrics`; cross-entropies and divergences in nats, speed in
    documents a second. With `by`, `slices` has for each column what `slices.sliced` tells. It is a
    dict, and shows itself as a table.

    Raises:
        ConfigError: options or models that do not go together, or no such column to slice by.
        ModelError: a model cannot be loaded, or does not take the documents.
        CorpusError: the documents cannot be read, have a label never seen in training, or more
            than 1,000 values in a column to slice by.
        CacheError: the cache cannot be read.
    """
    progress = shown(progress)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more; got {batch_size}")
    columns = [by] if isinstance(by, str) else list(by)
    if teacher is None or isinstance(teacher, SharedTeacher):
        shared = teacher
    else:
        shared = SharedTeacher(teacher)
    source = None if shared is None else shared.source
    known = cache if isinstance(cache, Cache) or cache is None else open_cache(cache)
    task = _task(model, source, known, columns, trust_remote_code)
    if predictions is not None:
        _require_predicted(task, Path(predictions), file)
    known = as_read_by(known, model)
    reading = Reading(
        text_columns=text_columns,
        label_column=label_column,
        ignore_columns=ignore_columns,
        limit=limit,
        max_length=max_length,
    )
    corpus, cuts = None, []
    if columns or predictions is not None:
        corpus = documents_of(file, model, task, known, reading)
        cuts = read_cuts(corpus, columns, file)
    made = opened(model, task, known, device=device, trust_remote_code=trust_remote_code)
    with scratch_folder(None) as scratch:
        plan = made.plan(file, reading, scratch, progress)
        made.require_reads(plan, file, progress)
        cuts = with_lengths(cuts, plan, progress)
        agreement = Agreement(plan, known, made.loaded.shape.outputs) if known is not None else None
        result = _predict(made, plan, file, batch_size, agreement, progress)
        _say_renumbering(plan, result, progress)
        report = _scores(made, plan, result)
        if agreement is not None:
            report["teacher_rows"] = agreement.report()
        if predictions is not None and corpus is not None:
            with writing(Path(predictions)):
                given: Any = {"corpus": corpus, "tokenizer": made.tokenizer, "cuts": cuts}
                write_predictions(Path(predictions), plan, result.logits, **given)
        report["documents_per_s"] = rate(made.loaded, plan, token_budget(plan, batch_size))
        with ExitStack() as beside:
            theirs = None
            if shared is not None:
                ran: Any = {"batch_size": batch_size, "device": device, "progress": progress}
                ran["trust_remote_code"] = trust_remote_code
                theirs = beside.enter_context(shared.beside(made, plan, file, reading, **ran))
                report["teacher"] = dict(theirs.told)
                report["speedup"] = report["documents_per_s"] / theirs.told["documents_per_s"]
            if cuts:
                report["slices"] = sliced(plan, result, cuts, theirs)
    return report


def _task(
    model: str | Path,
    teacher: str | Path | None,
    cache: Cache | None,
    columns: Sequence[str],
    trusted: bool,
) -> Task:
    """The task of a model that can be scored, and sliced by columns where there are any."""
    task = task_of(model, cache, trust_remote_code=trusted)
    outputs = classes_of(model, task, trust_remote_code=trusted)
    task.require(outputs.names or [])
    if task.labelled:
        for source in (model, *([] if teacher is None else [teacher])):
            require_label_kind(load_config(source, trust_remote_code=trusted), source)
    if columns:
        require_sliced(task, outputs.kind)
    return task


def _require_predicted(task: Task, path: Path, file: Any) -> None:
    if not task.predicted:
        able = " and ".join(name for name, known in TASKS.items() if known.predicted)
        raise ConfigError(f"predictions are written for {able} only, not {task}")
    require_no_input(path, file)
    require_writable(path, file=True)


def _scores(made: Opened, plan: Plan, result: Predictions) -> Scores:
    told = made.task.scored(plan.config.classes or [])
    return Scores(
        {
            "task": made.task.name,
            **({"scored": told} if told else {}),
            "documents": plan.documents,
            "parameters": made.loaded.identity["parameters"],
            **scores(plan, result),
        }
    )


def _predict(
    made: Opened,
    plan: Plan,
    file: Any,
    batch_size: int,
    agreement: Agreement | None,
    progress: Progress,
) -> Predictions:
    name, budget = made.loaded.identity["name"], token_budget(plan, batch_size)
    label = f"evaluating {short(made.folder)} on {short(file)}"
    with progress.bar(label, unit="documents", total=plan.documents) as advance:

        def seen(docs: Docs, logits: torch.Tensor) -> None:
            require_finite(name, logits)
            if agreement is not None:
                agreement.add(docs, logits)
            advance(len(docs))

        return predict(made.loaded.model, plan, length_batches(plan, plan.docs, budget), seen)


def _say_renumbering(plan: Plan, result: Predictions, progress: Progress) -> None:
    if plan.label_kind.numbered:
        numbering = Numbering()
        numbering.add(plan.labels(plan.docs), result.logits.argmax(1))
        if (warning := numbering.warning(plan.config.classes)) is not None:
            progress.say(warning)
