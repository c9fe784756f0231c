"""A classifier to be shipped: its torch model, its tokenizer, and what running it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.building.planner import PlanOptions
from kdcache.building.training_note import (
    require_same_texts,
    require_trained_vocabulary,
    texts_of,
    trained_plan,
)
from kdcache.corpora.readers import name_of
from kdcache.errors import ConfigError, CorpusError, ModelError
from kdcache.evaluation.opened import task_of
from kdcache.evaluation.scoring import forward, require_finite, require_fit, settle
from kdcache.labels import kind_of
from kdcache.manifest import Json
from kdcache.models import Teacher, Tokenizer, load_config, load_teacher, load_tokenizer
from kdcache.models.auto import problem_type_of, require_label_kind
from kdcache.models.padding import pad_of
from kdcache.models.teacher import most_tokens
from kdcache.models.tokenizer import UNBOUNDED, load_plain
from kdcache.plans import Docs
from kdcache.progress import Progress
from kdcache.shipping.documents import Documents, read_documents, write_prose
from kdcache.tasks import TASKS

Logits = npt.NDArray[np.float32]
LONGEST = 512  # tokens, where neither training nor tokenizer nor model say


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

    def run(self, docs: Docs) -> Logits:
        """The torch model's logits of documents in one padded batch, [docs, C]."""
        plan = self.documents.plan
        ((_, values, _),) = forward(self.torch.model, plan, [docs])
        require_finite(self.name, values)
        logits: Logits = values.numpy()
        return logits


def require_classifier(folder: str | Path, *, trust: bool = False) -> None:
    """Raise ConfigError or ModelError unless the model of a folder is one that can be shipped."""
    task = task_of(folder, trust_remote_code=trust)
    if not task.shipped:
        able = " and ".join(name for name, known in TASKS.items() if known.shipped)
        raise ConfigError(
            f"{folder} is a model for {task}, and ship writes classifiers and regressors only "
            f"(models for {able}): serve it as it is with transformers or a server for language "
            "models"
        )
    require_label_kind(load_config(folder, trust_remote_code=trust), folder)


def load_source(
    folder: str | Path,
    file: Any,
    options: PlanOptions,
    *,
    scratch: Path,
    progress: Progress,
    trust: bool = False,
) -> Source:
    """Load a classifier with the documents of `file`; where that is None, texts of our own.

    `options` say how `file` is read; documents are cut to `max_length`, else as in its training,
    else to what the tokenizer says. Files go into `scratch`, a folder that is there.
    `trust` lets code run that comes with a model.

    Raises ModelError, ConfigError, CorpusError.
    """
    task = task_of(folder, trust_remote_code=trust)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    trained = trained_plan(folder, None, task)
    require_trained_vocabulary(folder, tokenizer)
    model = load_teacher(folder, task=task, device="cpu", trust_remote_code=trust)
    length = _length(folder, trained, model, options.get("max_length"), trust=trust)
    known = texts_of(trained)
    texts: Any = file
    count = len(known or options.get("text_columns", ())) if file is None else None
    if count is not None:
        texts, options = write_prose(scratch / "texts.csv", count or 1), {"label_column": ""}
    documents = read_documents(
        texts,
        folder,
        tokenizer,
        task=task,
        scratch=scratch / "documents",
        like=known,
        progress=progress,
        options={**options, "max_length": length},
        trust=trust,
    )
    name, plan = model.identity["name"], documents.plan
    require_fit(model.model, plan, name)
    require_same_texts(folder, known, plan, texts)
    settings = _settings(model, tokenizer, length)
    settings["texts"] = None if count == 0 else documents.columns
    settings["padded"] = not settle(model.model, plan, name, progress)
    return Source(
        folder=str(folder),
        torch=model,
        tokenizer=tokenizer,
        documents=documents,
        settings=settings,
    )


def require_labels(source: Source, file: Any) -> None:
    """Raise CorpusError unless there is something to score against."""
    if not source.documents.plan.labelled:
        raise CorpusError(
            f"{name_of(file)} has no labels to score against; name them with --label-column"
        )


def _length(
    folder: str | Path, trained: Json, model: Teacher, wanted: int | None, *, trust: bool
) -> int:
    limit = most_tokens(model.model)
    if wanted is not None and limit is not None and wanted > limit:
        raise ModelError(f"{folder} takes {limit} tokens, not {wanted}; pass --max-length {limit}")
    asked = int(load_plain(folder, trust_remote_code=trust).model_max_length)
    usual = asked if asked < UNBOUNDED else LONGEST
    length = int(trained.get("max_length", usual) if wanted is None else wanted)
    return length if limit is None else min(length, limit)


def _settings(model: Teacher, tokenizer: Tokenizer, length: int) -> Json:
    config = model.model.config
    pad = pad_of(config.get_text_config())
    if pad is None:
        raise ModelError(
            f"{model.identity['name']} names no pad, which a batch of texts needs: write a "
            "pad_token_id into its config.json"
        )
    count = int(config.num_labels)
    kind = kind_of(problem_type_of(config), count)
    assert kind is not None  # `require_classifier` has asked
    return {
        "problem": kind.name,
        "labels": [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(count)],
        "max_length": length,
        "truncation_side": tokenizer.plain.truncation_side,
        "pad_id": pad,
    }
