"""The Auto class of each task, and configurations read without loading weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers

from kdcache.errors import ModelError
from kdcache.tasks import Task

transformers.utils.logging.disable_progress_bar()

AUTO: dict[Task, Any] = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "causal-lm": transformers.AutoModelForCausalLM,
}


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder, a configuration file or a hub name.

    Raises ModelError if there is none.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model folder: it has no config.json")
    try:
        return transformers.AutoConfig.from_pretrained(
            str(source), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(unreadable("model configuration", source, error)) from error


def unreadable(what: str, source: str | Path, error: Exception) -> str:
    """One line for what transformers says in many."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not Path(source).exists():
        return (
            f"no {what} {str(source)!r}: there is no such folder, and the hub gave none ({first})"
        )
    return f"cannot load the {what} in {source}: {first}"
