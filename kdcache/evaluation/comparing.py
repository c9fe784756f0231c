"""Compare a student with its teacher, document by document: what is lost, and where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.building.planner import scratch_folder
from kdcache.building.trimmed_cache import as_read_by
from kdcache.corpora.readers import name_of
from kdcache.errors import ConfigError, CorpusError, ModelError
from kdcache.evaluation.agreement import held_in, require_comparable
from kdcache.evaluation.beside import SIDES, by_length
from kdcache.evaluation.opened import Opened, Reading, opened, task_of
from kdcache.evaluation.scoring import BATCH, predict, require_finite, run_teacher, token_budget
from kdcache.evaluation.shared_teacher import as_teacher_reads
from kdcache.labels import known as labelled
from kdcache.manifest import Json
from kdcache.models import classes_of, load_config
from kdcache.models.auto import require_label_kind
from kdcache.plans import Docs, Plan
from kdcache.plans.batch import length_batches
from kdcache.progress import Progress, Shown, short, shown
from kdcache.signals import LOGITS, DenseLogits
from kdcache.store import Cache, Place, open_cache
from kdcache.tasks import Task


def compare(
    student: str | Path,
    file: Any = None,
    *,
    cache: Place | Cache | None = None,
    teacher: str | Path | None = None,
    bins: int = 4,
    batch_size: int = BATCH,
    device: str = "auto",
    text_columns: Sequence[str] = (),
    label_column: str | Sequence[str] | None = None,
    ignore_columns: Sequence[str] = (),
    limit: int | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> Json:
    """Put a student beside its teacher on labelled documents of one class, or several.

    Args:
        student: a folder `train` wrote, or any model folder of a text classifier.
        file: a corpus, as in `plan`; without it the documents are those of the cache.
        cache: what the teacher says is read from it; of `file`, documents it has too are compared.
        teacher: folder of the teacher, run in the place of a cache on the documents of `file`.
        bins: of the lengths of documents, quantiles that have a row each.
        batch_size: documents of mean length in a forward.
        max_length: tokens a document may have; what the student was trained with, else 128.
        trust_remote_code: import the class of a student or teacher that is somebody's own module.

    Returns shares of documents, of all and as rows of `classes` and `lengths`: `agreement` (both
    say the same), `both_right`, `lost` (the teacher alone is right), `gained` (the student alone
    is), `both_wrong`; and `divergence`, the mean of KL(teacher || student) in nats. The rows of
    classes are the documents that people gave a class, and `confusion` counts documents by what the
    teacher (rows) and the student (columns) take them for; of documents of several classes a row
    says of all of them whether they have the class, and a document is right in all its classes.

    Raises:
        ConfigError: options or models that do not go together, or a model that is no such
            classifier.
        ModelError: a model cannot be loaded, or does not take the documents.
        CorpusError: the documents cannot be read, or none that is shared has a label.
        CacheError: the cache cannot be read.
    """
    reading = Reading(
        text_columns=text_columns,
        label_column=label_column,
        ignore_columns=ignore_columns,
        limit=limit,
        max_length=max_length,
    )
    _require_sides(file, cache, teacher, reading)
    for name, number in (("bins", bins), ("batch_size", batch_size)):
        if number < 1:
            raise ConfigError(f"{name} must be 1 or more; got {number}")
    trust: Any = {"trust_remote_code": trust_remote_code}
    progress, task = shown(progress), task_of(student, **trust)
    for folder in (student, *([] if teacher is None else [teacher])):
        _require_classifier(folder, task, trust)
    told = cache if isinstance(cache, Cache) or cache is None else open_cache(cache)
    told = as_read_by(told, student)
    if told is not None:
        _require_teacher(told, student, task, trust)
    elif teacher is not None and task.labelled:
        theirs = classes_of(teacher, task, **trust).names
        _require_names(student, classes_of(student, task, **trust).names, theirs, str(teacher))
    made = opened(student, task, told, device=device, **trust)
    with scratch_folder(None) as scratch:
        if told is not None and file is None:
            plan, source = told.plan, told.path
        else:
            plan, source = made.plan(file, reading, scratch, progress), file
        made.require_reads(plan, source, progress)
        rows = {int(doc): int(doc) for doc in plan.docs} if told is None else held_in(told, plan)
        docs = _labelled(plan, rows, told, file)
        ran: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        if told is not None:
            name, said = _cached(told, [rows[int(doc)] for doc in docs])
        else:
            assert teacher is not None
            name, said = _run(
                teacher, made, plan, docs, reading, file, device=device, **ran, **trust
            )
        left = {"unlabelled": len(rows) - len(docs), "not_in_cache": plan.documents - len(rows)}
        return {
            "student": made.loaded.identity["name"],
            "teacher": name,
            "task": task.name,
            "left_out": left,
            **_report(plan, docs, _logits(made, plan, docs, **ran), said, bins),
        }


def _require_sides(file: Any, cache: object, teacher: object, reading: Reading) -> None:
    """One teacher, and documents; what says how a file is read needs one."""
    if (cache is None) == (teacher is None):
        raise ConfigError(
            "compare needs what the teacher says, once: pass --cache CACHE, or FILE and --teacher "
            "FOLDER"
        )
    if file is not None:
        return
    if cache is None:
        raise ConfigError("--teacher runs on the documents of a FILE: name one, or pass --cache")
    given = [name for name, value in vars(reading).items() if value not in (None, ())]
    if given:
        flags = ", ".join(
            f"--{name.replace('_', '-').replace('columns', 'column')}" for name in given
        )
        raise ConfigError(f"{flags}: of the documents of a FILE; name one, or leave it out")


def _require_classifier(source: str | Path, task: Task, trust: Json) -> None:
    kind = None
    if task.labelled:
        require_label_kind(load_config(source, **trust), source)
        kind = classes_of(source, task, **trust).kind
    if task.selects or kind is None or kind.name not in SIDES:
        what = f"a {kind.called}, {task.name}" if kind else f"for {task}"
        raise ConfigError(
            f"compare is for classifiers of texts, of one class or several; {source} is {what}: "
            "`kdcache evaluate --cache` tells how far any other agrees with its teacher"
        )


def _require_teacher(cache: Cache, student: str | Path, task: Task, trust: Json) -> None:
    """Raise unless the cache keeps what a teacher of the same classes says."""
    outputs, theirs = classes_of(student, task, **trust), cache.plan.config.classes
    require_comparable(task, outputs, cache)
    _require_names(student, outputs.names, theirs, f"the teacher of {cache.path}")
    if cache.holder(LOGITS) is None:
        raise ConfigError(
            f"{cache.path} holds no logits: build one with --signal logits:dense, or name a FILE "
            "and --teacher FOLDER in its place"
        )


def _require_names(
    student: str | Path, ours: Sequence[str] | None, theirs: Sequence[str] | None, whose: str
) -> None:
    """Raise ModelError where the classes of both have names, and others; numbers name nothing."""
    if not (_are_names(ours) and _are_names(theirs)):
        return
    for number, (own, other) in enumerate(zip(ours or (), theirs or (), strict=False)):
        if own != other:
            raise ModelError(
                f"class {number} of {student} is {own}, and of {whose} {other}: they cannot be "
                "compared class by class; compare a student with its own teacher, or, where the "
                "two mean the same, name them alike (id2label in the config.json of the student)"
            )


def _are_names(classes: Sequence[str] | None) -> bool:
    """Whether classes are called something else than their numbers."""
    return classes is not None and list(classes) != [str(i) for i in range(len(classes))]


def _labelled(plan: Plan, rows: dict[int, int], cache: Cache | None, file: Any) -> Docs:
    """Documents that have a label and that the teacher is known to say something of."""
    if not rows and cache is not None:
        raise CorpusError(
            f"none of the documents of {name_of(file)} is in {cache.path}: leave the file out to "
            "compare on the cache's own, or pass --teacher FOLDER in the place of --cache"
        )
    docs = np.array(sorted(rows), np.int64)
    docs = docs[labelled(plan.labels(docs))]
    if not len(docs):
        where = f"the documents of {cache.path}" if cache is not None else name_of(file)
        raise CorpusError(f"{where}: none has a label to compare by; name a FILE with labels")
    return docs


def _cached(cache: Cache, rows: list[int]) -> tuple[str, Any]:
    """Name of the teacher of a cache, and what it says of rows of its documents."""
    return cache.manifest["teacher"]["name"], cache.stored(np.array(rows, np.int64), LOGITS)


def _run(
    source: str | Path,
    made: Opened,
    plan: Plan,
    docs: Docs,
    reading: Reading,
    file: Any,
    **options: Any,
) -> tuple[str, Any]:
    """The same of a teacher that is run, as a cache of all its logits has it."""
    numbers = plan.per_document["doc_id"][docs]
    with as_teacher_reads(source, made, plan, file, reading) as (own, tokenizer):
        ids = own.per_document["doc_id"]
        same = own.docs[np.isin(ids[own.docs], numbers)]
        loaded, found = run_teacher(source, own, tokenizer, same, **options)
        place = {int(number): row for row, number in enumerate(ids[found.docs])}
    logits = found.logits[[place[int(number)] for number in numbers]]
    signal = DenseLogits(activation=plan.label_kind.activation)
    said = signal.decode({"values": torch.from_numpy(logits)}, LOGITS, loaded.shape)
    return loaded.identity["name"], said


def _report(plan: Plan, docs: Docs, logits: torch.Tensor, said: Any, bins: int) -> Json:
    """Shares of all, and as rows of classes and of lengths."""
    labels = torch.from_numpy(plan.labels(docs).astype(np.int64))
    sides = SIDES[plan.label_kind.name]
    both, parts = sides(logits, said, labels, plan.config.classes or [])
    lengths = by_length(both, plan.per_document["doc_len"][docs], bins)
    return {**both.shares(), **parts, "lengths": lengths}


def _logits(
    made: Opened, plan: Plan, docs: Docs, *, batch_size: int, progress: Progress
) -> torch.Tensor:
    """What the student says of documents, [N, C] float64."""
    name, label = made.loaded.identity["name"], f"running the student {short(made.folder)}"
    with progress.bar(label, unit="documents", total=len(docs)) as advance:

        def seen(batch: Docs, logits: torch.Tensor) -> None:
            require_finite(name, logits)
            advance(len(batch))

        batches = length_batches(plan, docs, token_budget(plan, batch_size))
        return torch.from_numpy(predict(made.loaded.model, plan, batches, seen).logits).double()
