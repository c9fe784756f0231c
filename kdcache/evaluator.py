"""Evaluate a model on a file: task scores, agreement with the teacher, size and speed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from kdcache_kernels import topk_kl

from kdcache.batch import collate
from kdcache.capture import length_batches
from kdcache.errors import ConfigError, CorpusError, ModelError
from kdcache.manifest import Json
from kdcache.metrics import classification, regression
from kdcache.models import Teacher, classes_of, load_config, load_teacher, load_tokenizer
from kdcache.planner import PlanOptions, make_plan, scratch_folder
from kdcache.plans import Plan
from kdcache.progress import Progress, quiet
from kdcache.store import Cache, open_cache, open_plan, write_plan
from kdcache.models.run import run_model
from kdcache.tasks import Task

Docs = npt.NDArray[np.int64]
HEADS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
TIMED_DOCS = 512


@dataclass(frozen=True)
class _Result:
    """Predictions of a model over a plan; language models keep scores of each row only."""

    logits: npt.NDArray[np.float32]  # [documents, C]; [0, 0] for language models
    nats: npt.NDArray[np.float64]  # cross-entropy of each labelled row, language models only
    correct: npt.NDArray[np.bool_]  # whether its likeliest token is right
    agreement: list[bool]
    divergence: list[float]


def evaluate(
    model: str | Path,
    file: Any,
    *,
    cache: str | Path | None = None,
    teacher: str | Path | None = None,
    batch_size: int = 64,
    device: str = "auto",
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    progress: Progress = quiet,
) -> Json:
    """Score the model in the folder `model` on the documents of `file`.

    Args:
        model: a folder `train` wrote, or any model folder of one of the tasks.
        file: a corpus, as in `plan`, with labels unless the task is language modelling.
        cache: where its documents are among those of `file`, agreement with the teacher is told.
        teacher: folder of the teacher, to score and time it on the same documents.
        batch_size: documents of mean length in a forward.
        max_length: tokens a document may have; what the model was trained with, else 128.

    Returns the scores by name: see `metrics`; cross-entropies and divergences in nats, speed in
    documents a second. Raises ModelError, CorpusError (a label never seen in training), CacheError.
    """
    task = task_of(model)
    student = load_teacher(model, task=task, device=device)
    known = open_cache(cache) if cache is not None else None
    options = _options(model, known, task, max_length)
    options.update(text_columns=text_columns, label_column=label_column, limit=limit)
    with scratch_folder(Path.cwd() / "evaluation") as scratch:
        plan = _plan(file, model, task, scratch, options, progress)
        if task == "text-classification" and plan.labelled == 0:
            raise CorpusError(f"{file} has no labels to score against; name them with --label-column")
        rows = _matches(plan, known) if known is not None else {}
        budget = batch_size * max(1, plan.tokens // plan.documents)
        with progress.bar("evaluating", unit="documents", total=plan.documents) as advance:
            result = _predict(student, plan, budget, known, rows, advance)
        report = {
            "task": task,
            "documents": plan.documents,
            "parameters": student.identity["parameters"],
            **_scores(plan, result),
        }
        if known is not None:
            report["teacher_rows"] = _agreement(result, len(rows))
        report.update(_speed(student, plan, budget, teacher, task, device))
    return report


def task_of(model: str | Path) -> Task:
    """The task of a model folder, from its architecture; ModelError if it is none of ours."""
    heads = load_config(model).architectures or []
    for head in heads:
        for ending, task in HEADS.items():
            if head.endswith(ending):
                return task
    raise ModelError(f"{model} is a {', '.join(heads) or 'model without a head'}: not for any task")


def _options(model: str | Path, cache: Cache | None, task: Task, length: int | None) -> PlanOptions:
    """What the model was trained with, where that is known."""
    import json

    options: PlanOptions = {}
    record = Path(model) / "cache.json"
    config: Json = {}
    if record.is_file():
        config = json.loads(record.read_text()).get("plan", {}).get("config", {})
    elif cache is not None:
        config = cache.plan.config.to_json()
    if config.get("task", task) != task:
        raise ConfigError(f"{model} is a model for {task}; the cache is for {config['task']}")
    options["max_length"] = length or config.get("max_length", 128)
    if task == "masked-lm" and config:
        options.update(mask_probability=config["mask_probability"], seed=config["seed"])
    return options


def _plan(
    file: Any,
    model: str | Path,
    task: Task,
    scratch: Path,
    options: PlanOptions,
    progress: Progress,
) -> Plan:
    tokenizer = load_tokenizer(model)
    made = make_plan(
        file,
        tokenizer,
        scratch=scratch,
        task=task,
        classes=classes_of(model),
        progress=progress,
        **options,
    )
    write_plan(scratch / "plan.zarr", made)
    return open_plan(scratch / "plan.zarr")


def _predict(
    student: Teacher,
    plan: Plan,
    budget: int,
    cache: Cache | None,
    rows: dict[int, int],
    advance: Callable[[int], None],
) -> _Result:
    language = plan.config.task != "text-classification"
    size = 0 if language else student.shape.outputs
    logits = np.zeros((len(plan.docs) if size else 0, size), np.float32)
    place = {int(doc): index for index, doc in enumerate(plan.docs)}
    nats: list[Any] = []
    correct: list[Any] = []
    same: list[bool] = []
    apart: list[float] = []
    for docs, out, labels in _forward(student, plan, budget):
        if language:
            kept = labels >= 0
            nats.append(torch.nn.functional.cross_entropy(out[kept], labels[kept], reduction="none"))
            correct.append(out[kept].argmax(-1) == labels[kept])
        else:
            logits[[place[int(doc)] for doc in docs]] = out.cpu().numpy()
        if cache is not None and rows:
            _compare(cache, plan, docs, rows, out, same, apart)
        advance(len(docs))
    return _Result(
        logits,
        torch.cat(nats).double().cpu().numpy() if nats else np.empty(0),
        torch.cat(correct).cpu().numpy() if correct else np.empty(0, np.bool_),
        same,
        apart,
    )


def _forward(
    model: Teacher, plan: Plan, budget: int, docs: Docs | None = None
) -> Iterator[tuple[Docs, torch.Tensor, torch.Tensor]]:
    for chosen in length_batches(plan, plan.docs if docs is None else docs, budget):
        batch = collate(plan, chosen, {}).to(model.device)
        with torch.inference_mode():
            outputs = run_model(model.model, plan.config.task, batch, hidden=False)
        yield chosen, outputs.logits.float(), batch["labels"]


def _scores(plan: Plan, result: _Result) -> Json:
    if plan.config.problem == "tokens":
        nats = float(result.nats.mean())
        return {
            "rows": len(result.nats),
            "cross_entropy": nats,
            "perplexity": float(np.exp(nats)),
            "accuracy": float(result.correct.mean()),
        }
    if plan.config.problem == "regression":
        targets = plan.examples["value"][plan.docs]
        kept = np.isfinite(targets)
        return regression(result.logits[kept, 0], targets[kept])
    labels = plan.examples["label"][plan.docs]
    return classification(result.logits[labels >= 0], labels[labels >= 0])


def _keys(plan: Plan) -> Iterator[tuple[int, bytes]]:
    """Each document's row and a digest of its tokens and masked positions."""
    names = [("tokens", "token")] + [("masked_position", "masked")] * ("masked" in plan.rows)
    for part in range(plan.parts):
        docs = plan.part_docs(part)
        states = [hashlib.blake2b(digest_size=16) for _ in docs]
        for name, space in names:
            size = plan.rows[space]  # type: ignore[index]  # names pairs columns with their spaces
            rows = plan.columns[name][part * size : (part + 1) * size].astype(np.int64)
            starts, counts = plan.spans(docs, space)  # type: ignore[arg-type]
            for state, start, count in zip(states, starts - part * size, counts, strict=True):
                state.update(rows[start : start + count].tobytes())
        yield from zip(docs.tolist(), (state.digest() for state in states), strict=True)


def _matches(plan: Plan, cache: Cache) -> dict[int, int]:
    """Rows of documents that the cache holds too, with their rows in the cache."""
    if cache.plan.config.tokenizer["sha256"] != plan.config.tokenizer["sha256"]:
        raise ModelError("the model's tokenizer is not the cache's: their tokens cannot be compared")
    held = {key: doc for doc, key in _keys(cache.plan)}
    return {doc: held[key] for doc, key in _keys(plan) if key in held}


def _compare(
    cache: Cache,
    plan: Plan,
    docs: Docs,
    rows: dict[int, int],
    logits: torch.Tensor,
    same: list[bool],
    apart: list[float],
) -> None:
    """Add agreement and KL(teacher || student), in nats, of the rows the cache has."""
    if "logits" not in cache.signals:
        return
    space = cache.spaces[cache.arrays_of("logits")[0]]
    counts = plan.spans(docs, space)[1]
    kept = np.repeat([int(doc) in rows for doc in docs], counts)
    if not kept.any():
        return
    soft = cache.soft_labels(np.array([rows[int(doc)] for doc in docs if int(doc) in rows]))
    mine = logits.cpu()[torch.from_numpy(kept)]
    if cache.plan.config.problem == "regression":
        assert soft.values is not None
        apart.extend((mine - soft.values).square().mean(-1).tolist())
        return
    top = soft.ids.gather(1, soft.logprobs.argmax(-1, keepdim=True)).squeeze(1)
    same.extend((mine.argmax(-1) == top).tolist())
    _, nats, _ = topk_kl(
        mine, soft.ids, soft.logprobs, tail_logmass=soft.tail_logmass, return_rows=True
    )
    apart.extend(nats.tolist())


def _agreement(result: _Result, documents: int) -> Json:
    """What the student and the teacher of the cache agree on; None where no row is shared."""
    return {
        "documents": documents,
        "agreement": float(np.mean(result.agreement)) if result.agreement else None,
        "divergence": float(np.mean(result.divergence)) if result.divergence else None,
    }


def _speed(
    student: Teacher, plan: Plan, budget: int, teacher: str | Path | None, task: Task, device: str
) -> Json:
    """Documents a second of the student, and of the teacher with its scores where it is given."""
    report: Json = {"documents_per_s": _rate(student, plan, budget)}
    if teacher is not None:
        loaded = load_teacher(teacher, task=task, device=device)
        result = _predict(loaded, plan, budget, None, {}, lambda done: None)
        rate = _rate(loaded, plan, budget)
        report["teacher"] = {
            "parameters": loaded.identity["parameters"],
            **_scores(plan, result),
            "documents_per_s": rate,
        }
        report["speedup"] = report["documents_per_s"] / rate
    return report


def _rate(model: Teacher, plan: Plan, budget: int) -> float:
    """Documents a second over a sample, timed after a warm-up forward."""
    sample = plan.docs[:TIMED_DOCS]
    for _ in _forward(model, plan, budget, sample[:8]):
        pass
    started = time.perf_counter()
    for _ in _forward(model, plan, budget, sample):
        pass
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return len(sample) / (time.perf_counter() - started)
