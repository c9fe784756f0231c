"""A classifier to be shipped: its torch model, its tokenizer, and what running it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.batch import Batch, collate
from kdcache.capture import length_batches
from kdcache.errors import ConfigError, CorpusError, ModelError
from kdcache.evaluator import task_of
from kdcache.manifest import Json
from kdcache.models import (
    Teacher,
    Tokenizer,
    check_alone,
    load_config,
    load_teacher,
    load_tokenizer,
    run_model,
)
from kdcache.models.auto import require_problem, require_token_types
from kdcache.models.largest_id import require_ids
from kdcache.models.padding import pad_of
from kdcache.models.teacher import most_tokens
from kdcache.models.tokenizer import load_plain
from kdcache.planner import PlanOptions
from kdcache.plans import Plan
from kdcache.progress import Progress
from kdcache.shipping.documents import Documents, read_documents, write_prose
from kdcache.tasks import Task
from kdcache.training_note import (
    require_same_texts,
    require_trained_vocabulary,
    texts_of,
    trained_plan,
)

Docs = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
TASK: Task = "text-classification"
LONGEST = 512  # tokens, where neither training nor tokenizer nor model say
BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded classifier and documents to try it on.

    Attributes:
        folder: where it lies, or its hub name.
        settings: what `infer.py` has to know, its `inference.json`.
    """

    folder: str
    torch: Teacher
    tokenizer: Tokenizer
    documents: Documents
    settings: Json

    @property
    def name(self) -> str:
        """What to call it."""
        return str(self.torch.identity["name"])

    def batch(self, docs: Docs) -> Batch:
        """The padded inputs of documents."""
        return collate(self.documents.plan, docs, {})

    def run(self, batch: Batch) -> Logits:
        """The torch model's logits of a batch, [B, C]."""
        with torch.inference_mode():
            said = run_model(self.torch.model, TASK, batch, hidden=False).logits
        logits: Logits = said.float().numpy()
        return logits

    def logits(self) -> Iterator[tuple[Docs, Logits]]:
        """The torch model's logits of all documents: places in their order, and [places, C]."""
        plan = self.documents.plan
        for docs in length_batches(plan, plan.docs, BATCH_TOKENS):
            yield np.searchsorted(plan.docs, docs), self.run(self.batch(docs))


def require_classifier(folder: str | Path) -> None:
    """Raise ConfigError or ModelError unless the model of a folder is one that can be shipped."""
    task = task_of(folder)
    if task != TASK:
        raise ConfigError(
            f"{folder} is a model for {task}, and ship writes models for {TASK}: serve it as it is "
            "with transformers or a server for language models"
        )
    require_problem(load_config(folder), folder)


def load_source(
    folder: str | Path,
    file: Any,
    options: PlanOptions,
    *,
    scratch: Path,
    progress: Progress,
) -> Source:
    """Load a classifier with the documents of `file`; where that is None, texts of our own.

    `options` say how `file` is read; documents are cut to `max_length`, else as in its training,
    else to what the tokenizer says. Files go into `scratch`, a folder that is there.

    Raises ModelError, ConfigError, CorpusError.
    """
    tokenizer, trained = load_tokenizer(folder), trained_plan(folder, None, TASK)
    require_trained_vocabulary(folder, tokenizer)
    model = load_teacher(folder, task=TASK, device="cpu")
    length = _length(folder, trained, model, options.get("max_length"))
    columns = texts_of(trained)
    given: PlanOptions = {**options, "max_length": length}
    if file is None:
        file, given = scratch / "texts.csv", {"max_length": length, "label_column": ""}
        write_prose(file, len(columns) or 1)
        columns = ["text", "text_pair"][: len(columns) or 1]
    documents = read_documents(
        file,
        folder,
        tokenizer,
        scratch=scratch / "documents",
        like=columns,
        progress=progress,
        options=given,
    )
    _require_fit(model, documents.plan)
    require_same_texts(folder, texts_of(trained), documents.plan, file)
    apart = check_alone(
        model.model, TASK, documents.plan, name=f"the model {model.identity['name']}"
    )
    return Source(
        folder=str(folder),
        torch=model,
        tokenizer=tokenizer,
        documents=documents,
        settings=_settings(model, tokenizer, length, len(columns), padded=not apart),
    )


def require_labels(source: Source, file: Any) -> None:
    """Raise CorpusError unless there is something to score against."""
    if not source.documents.plan.labelled:
        raise CorpusError(f"{file} has no labels to score against; name them with --label-column")


def _length(folder: str | Path, trained: Json, model: Teacher, wanted: int | None) -> int:
    limit = most_tokens(model.model)
    if wanted is not None and limit is not None and wanted > limit:
        raise ModelError(f"{folder} takes {limit} tokens, not {wanted}; pass --max-length {limit}")
    asked = int(load_plain(folder).model_max_length)
    usual = asked if limit is None or asked <= limit else limit
    length = wanted or trained.get("max_length") or min(usual, limit or LONGEST)
    return int(length if limit is None else min(length, limit))


def _require_fit(model: Teacher, plan: Plan) -> None:
    """Raise ModelError for tokens or token types that the model has no embedding for."""
    name, config = model.identity["name"], model.model.config
    way = "put the tokenizer it was trained with into its folder, or leave the document out"
    require_ids(plan, config.get_text_config().vocab_size, name, way)
    require_token_types(config, plan, name)


def _settings(
    model: Teacher, tokenizer: Tokenizer, length: int, texts: int, *, padded: bool
) -> Json:
    config = model.model.config
    pad = pad_of(config.get_text_config())
    if pad is None:
        raise ModelError(
            f"{model.identity['name']} names no pad, which a batch of texts needs: write a "
            "pad_token_id into its config.json"
        )
    count = int(config.num_labels)
    return {
        "problem": "regression" if count == 1 else "classes",
        "labels": [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(count)],
        "max_length": length,
        "truncation_side": tokenizer.plain.truncation_side,
        "pad_id": pad,
        "padded": padded,
        "texts": texts or None,
    }
