"""What the folder of a classifier tells of its outputs: their kind, number and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.errors import ModelError
from kdcache.labels import UNKNOWN, Outputs, kind_of
from kdcache.models.auto import has_config, load_config, problem_type_of, require_label_kind
from kdcache.tasks import Task


def classes_of(source: str | Path, task: Task, *, trust_remote_code: bool = False) -> Outputs:
    """What is known of the outputs of a model folder; nothing if it is no classifier."""
    config = _classifier(source, task, trust_remote_code)
    return UNKNOWN if config is None else outputs_of(config)


def outputs_of(config: Any) -> Outputs:
    """What is known of the outputs of a classifier, by its configuration."""
    count = int(config.num_labels)
    return Outputs(class_names(config), count, kind_of(problem_type_of(config), count))


def check_classifier(source: str | Path, task: Task) -> None:
    """Raise ModelError where `source` is also a classifier that can be no teacher of a task."""
    config = _classifier(source, task)
    if config is not None:
        require_label_kind(config, source)


def _classifier(source: str | Path, task: Task, trust_remote_code: bool = False) -> Any:
    """The configuration of a classifier's folder; None for any other: a tokenizer can be alone."""
    if not task.labelled or not has_config(Path(source)):
        return None
    try:
        config = load_config(source, trust_remote_code=trust_remote_code)
    except ModelError:
        return None
    heads = config.architectures or []
    return config if any(name.endswith(task.heads) for name in heads) else None


def class_names(config: Any) -> list[str] | None:
    """Names of a classifier's classes in the order of their ids; None for LABEL_0, LABEL_1, ..."""
    names = [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels)]
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names
