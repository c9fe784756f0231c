"""The Auto class of each task, and configurations read without loading weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers

from kdcache.errors import ModelError, require_path
from kdcache.labels import kind_of
from kdcache.models.student_config import is_student, read_config
from kdcache.plans import Plan
from kdcache.tasks import Task, as_task

transformers.utils.logging.disable_progress_bar()


def auto_class(task: str | Task) -> Any:
    """The class of transformers that loads the models of a task."""
    return getattr(transformers, as_task(task).auto)


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Errors only: what a person should know, kdcache says itself."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def has_config(path: Path) -> bool:
    """Whether a folder holds a model's configuration; True of what is no folder: a hub may know."""
    return not path.is_dir() or (path / "config.json").is_file() or is_student(path)


def load_config(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder, a configuration file or a hub name.

    Raises ModelError if there is none.
    """
    require_path("a model", source)
    path = Path(source)
    if is_student(path):
        return read_config(path, trusted=trust_remote_code)
    if not has_config(path):
        raise ModelError(f"{path} is no model folder: it has no config.json")
    try:
        return transformers.AutoConfig.from_pretrained(
            str(source), trust_remote_code=trust_remote_code
        )
    except Exception as error:  # every field checks itself, with exceptions of several libraries
        raise ModelError(unreadable("model configuration", source, error)) from error


def require_direction(config: Any, task: Task, source: str | Path) -> None:
    """Raise ModelError for a model that would predict the next token while looking at it."""
    encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if task.causal and encoder and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"{source} is a {config.model_type} that reads in both directions: it does not fit "
            "causal-lm; use masked-lm, or a decoder"
        )


def problem_type_of(config: Any) -> str | None:
    """What transformers calls the outputs of a classifier; None: its configuration does not say."""
    found: str | None = getattr(config, "problem_type", None)
    return found


def require_label_kind(config: Any, source: str | Path) -> None:
    """Raise ModelError for a classifier whose outputs mean nothing that is known.

    Where `problem_type` says nothing, one output is a value and several are classes.
    """
    problem_type, outputs = problem_type_of(config), int(config.num_labels)
    if kind_of(problem_type, outputs) is None:
        raise ModelError(
            f"{source} says problem_type={problem_type} with 1 output, which tells no classes "
            "apart: where it gives a value, write regression for problem_type in its config.json"
        )


def require_token_types(config: Any, plan: Plan, name: str) -> None:
    """Raise ModelError if the plan's second texts have a token type that a model has no row for.

    Models with 0 types ignore them, and so do those that name no number of them.
    """
    types = getattr(config.get_text_config(), "type_vocab_size", None)
    if types == 1 and plan.token_types > 1:
        raise ModelError(
            f"{name} has an embedding for 1 token type (type_vocab_size), the plan's text pairs "
            f"have {plan.token_types}: choose a model for pairs, or a tokenizer without token types"
        )


def require_sizes(info: Mapping[str, Any], source: str | Path) -> None:
    """Raise ModelError where transformers found weights of another size than the configuration."""
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{source}: {name} is {list(stored)} in the weights and {list(wanted)} by the "
            "configuration; a model with other classes or another vocabulary does not fit here"
        )


def require_weights(info: Mapping[str, Any], source: str | Path) -> None:
    """Raise ModelError unless transformers found the weights of a model, all of them and no others.

    Weights that are tied are there once, and none of them is missing.
    """
    require_sizes(info, source)
    for what, names in (("lacks", info["missing_keys"]), ("has", info["unexpected_keys"])):
        if names:
            raise ModelError(
                f"{source} {what} the weights {', '.join(sorted(names)[:3])}, and is no such model "
                "as was saved there: put the folder back as it was"
            )


def unreadable(what: str, source: str | Path, error: Exception) -> str:
    """One line for what transformers says in many."""
    text = repr(error) if isinstance(error, KeyError) else str(error)  # else only the bare key
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    first = " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]) if lines else repr(error)
    if not Path(source).exists():
        return (
            f"no {what} {str(source)!r}: there is no such folder, and the hub gave none ({first})"
        )
    return f"cannot load the {what} in {source}: {first}"
