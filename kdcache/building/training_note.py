"""What is noted beside a model of what it was trained from, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdcache.corpora.readers import name_of
from kdcache.errors import ConfigError, ModelError
from kdcache.manifest import Json
from kdcache.models import Tokenizer
from kdcache.models.token_map import token_map
from kdcache.plans import Plan
from kdcache.store import Cache
from kdcache.tasks import Task, as_task

CACHE, TAUGHT = "cache.json", "taught.json"
"""Notes of `train`, of its cache, and of `teach`, of its corpus."""


def trained_plan(model: str | Path, cache: Cache | None, task: Task) -> Json:
    """The plan's configuration a model was trained with, where its folder or the cache tells.

    Nothing of one whose teacher was of another task than the plan.
    """
    teacher = _training(_note(model)).get("teacher")
    if isinstance(teacher, dict) and "task" in teacher:
        return {}
    config = _training_plan(_note(model))
    if not config and cache is not None:
        config = cache.plan.config.to_json()
    if as_task(config.get("task", task)).heads != task.heads:
        raise ConfigError(f"{model} is a model for {task}; the cache is for {config['task']}")
    return config


def trained_task(model: str | Path) -> str:
    """The task that a model was trained for, where its folder tells; "": it does not."""
    return str(_training_plan(_note(model)).get("task", ""))


def require_trained_vocabulary(model: str | Path, tokenizer: Tokenizer) -> None:
    """Raise ModelError if another vocabulary is noted beside a model."""
    trained = _training(_note(model)).get("vocabulary")
    if trained is not None and trained != token_map(tokenizer.plain).sha256:
        raise ModelError(
            f"the tokenizer in {model} numbers other tokens than the one it was trained with "
            f"({_note(model).name}): put that one's files back into the folder"
        )


def length_note(model: str | Path, plan: Plan) -> str | None:
    """What a person should know of documents longer than any that a classifier was trained on."""
    trained = _training_plan(_note(model)).get("max_length")
    longest = int(plan.per_document["doc_len"].max())
    if not plan.task.labelled or trained is None or longest <= trained:
        return None
    return (
        f"{model} was trained on documents of up to {trained} tokens, and these have up to "
        f"{longest}: --max-length {trained} cuts them as it knows them"
    )


def texts_of(config: Json) -> list[str]:
    """The text columns of a plan's configuration; none where that is not known."""
    return list(config.get("corpus", {}).get("text_columns", ()))


def _note(model: str | Path) -> Path:
    taught = Path(model) / TAUGHT
    return taught if taught.is_file() else Path(model) / CACHE


def _training_plan(record: Path) -> Json:
    """The plan's configuration that is noted beside a model; empty if there is no note."""
    try:
        return dict(_training(record).get("plan_config", {}))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{record} is damaged: {error}") from error


def _training(record: Path) -> Json:
    """What is noted beside a model; empty if there is no note."""
    if not record.is_file():
        return {}
    try:
        return dict(json.loads(record.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{record} is damaged: {error}") from error


def require_same_texts(model: str | Path, trained: list[str], plan: Plan, file: Any) -> None:
    """Raise if a model trained on one text a document is given two, or the other way round."""
    found = texts_of(plan.config.to_json())
    if trained and len(trained) != len(found):
        raise ConfigError(
            f"{model} was trained on {_columns(trained)} and cannot be scored on "
            f"{_columns(found)} of {name_of(file)}: name what it should read with --text-column"
        )


def _columns(names: list[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {' and '.join(names)}"
