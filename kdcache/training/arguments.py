"""The `[training]` table of a recipe as transformers.TrainingArguments."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from kdcache.errors import ConfigError, did_you_mean, near, one_of
from kdcache.evaluation.scoring import BATCH, LOWER_IS_BETTER
from kdcache.training.dev_options import EPOCH, DevOptions
from kdcache.training.launch import launch_values, require_together
from kdcache.training.recipe import Recipe

DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    # Projections run outside the student's forward, where DDP would take them for unused.
    "ddp_find_unused_parameters": False,
    "per_device_eval_batch_size": BATCH,
    # Constants, and a forward per length of documents would broadcast them as often on each rank.
    "ddp_broadcast_buffers": False,
}
FIXED: dict[str, Any] = {
    "disable_tqdm": True,  # progress is reported by kdcache.progress
    "remove_unused_columns": False,  # a batch's signal arrays are no arguments of the model
    "logging_nan_inf_filter": False,  # a loss that is not a number has to show
}
_ORDER = "the order of documents is data.group_by_length and data.window"
_DEV = (
    "a student is scored while it trains on a dev set: --dev FILE or --dev-split 10%, --dev-every"
)
_BEST = "the best weights are kept where there is a dev set: --dev FILE or --dev-split 10%"
_METRIC = "the score on a dev set is that of the task: accuracy, pearson or cross-entropy"
_READER = "the training process reads the cache itself"
_RESUME = "a resumed run has to see the batches the unbroken one saw"
TAKEN = {
    "output_dir": "the folder is `out` (--out)",
    "resume_from_checkpoint": "to continue a run, use `resume` (--resume)",
    "group_by_length": _ORDER,
    "train_sampling_strategy": _ORDER,
    "length_column_name": _ORDER,
    "dataloader_num_workers": _READER,
    "dataloader_prefetch_factor": _READER,
    "dataloader_persistent_workers": _READER,
    "accelerator_config": "batches are dealt out to ranks by kdcache, none of them twice",
    "auto_find_batch_size": _RESUME,
    "ignore_data_skip": _RESUME,
    "label_smoothing_factor": "the objective is made of the losses of the recipe",
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"), _DEV),
    "load_best_model_at_end": _BEST,
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"), _METRIC),
    **dict.fromkeys(FIXED, "kdcache sets it"),
}
"""Fields that have no effect here, or a wrong one, and what to use."""

MEANT = {
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "max_epochs": "num_train_epochs",
    "steps": "max_steps",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "warmup": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "grad_accum": "gradient_accumulation_steps",
    "max_grad": "max_grad_norm",
    "no_cuda": "use_cpu",
}
"""Names people try, and the fields they mean."""


def known_fields() -> list[str]:
    """The fields of [training] that can be set."""
    fields = dataclasses.fields(transformers.TrainingArguments)
    return [field.name for field in fields if field.name not in TAKEN]


def meant_fields() -> dict[str, str]:
    """Names that people may use for fields of [training], those of the fields among them."""
    return {name: name for name in known_fields()} | MEANT


CHOICES = {"save_strategy": ("no", "steps", "epoch")}
"""Fields of which transformers knows more values than work here."""

_COUNT = ("1 or more", lambda value: value >= 1)
_LARGE = ("0 or more and finite", lambda value: 0 <= value < math.inf)
_SHARE = ("0 or more and below 1", lambda value: 0 <= value < 1)
_ABOVE = ("more than 0 and finite", lambda value: 0 < value < math.inf)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), _COUNT),
    "max_steps": ("1 or more, or -1 for none", lambda value: value >= 1 or value == -1),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps"), _ABOVE),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "adam_epsilon"), _LARGE),
    "max_grad_norm": ("0 or more", lambda value: value >= 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), _SHARE),
    "save_total_limit": _COUNT,
    **dict.fromkeys(("seed", "data_seed"), ("0 to 2^32 - 1", lambda value: 0 <= value < 2**32)),
}
"""Fields that a run depends on, and the numbers they may hold; others transformers checks."""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from TOML is what a field's type says, as far as types that TOML has."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    fits = {
        int: number and (isinstance(value, int) or value.is_integer()),
        float: number,
        bool: isinstance(value, bool),
        str: isinstance(value, str),
        dict: isinstance(value, dict),
        list: isinstance(value, list),
        types.NoneType: value is None,
    }
    kind = typing.get_origin(hint) or hint
    return fits.get(kind, not isinstance(kind, type) or isinstance(value, str | kind))


def training_arguments(recipe: Recipe, folder: Path) -> transformers.TrainingArguments:
    """Arguments of a run that keeps its checkpoints in `folder`.

    Raises ConfigError for a field that is unknown, taken or of the wrong type, and for values that
    transformers refuses.
    """
    for name, value in recipe.training.items():
        _check(name, value)
    values = (
        DEFAULTS
        | launch_values()
        | dict(recipe.training)
        | FIXED
        | {"output_dir": str(folder)}
        | ({} if recipe.dev is None else _scored(recipe.dev))
    )
    try:
        args = transformers.TrainingArguments(**values)
        args._n_gpu = min(1, args.n_gpu)  # DataParallel would cut a batch's token rows anywhere
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"[training] of recipe {recipe.name}: {error}") from error
    require_together(args)
    if recipe.dev is not None:
        _require_checkpoints(args)
    return args


def _scored(dev: DevOptions) -> dict[str, Any]:
    """Arguments of a run whose student is scored while it trains."""
    steps = {} if dev.strategy == EPOCH else {"eval_steps": dev.every}
    return {"eval_strategy": dev.strategy, **steps}


def _require_checkpoints(args: transformers.TrainingArguments) -> None:
    """Raise ConfigError unless the weights that scored best can be kept and loaded again."""
    if args.save_strategy == "no":
        raise ConfigError(
            "training.save_strategy=no keeps no weights to choose from on a dev set: leave it out, "
            "or train without --dev and --dev-split"
        )
    if args.fsdp or args.deepspeed:
        raise ConfigError(
            "a dev set is scored by a student that is whole on each rank, and training.fsdp or "
            "training.deepspeed shards it: train without them, or without --dev and --dev-split"
        )


def choose_by(args: transformers.TrainingArguments, metric: str) -> None:
    """Let a run keep the weights that score best by `metric`, and the last to resume from.

    Set once the arguments are made: when they are made, transformers requires that checkpoints are
    written when the student is scored and at no other time. `choosing.AtScores` writes one with
    every score, besides those that the recipe asks for.
    """
    args.load_best_model_at_end = True
    args.metric_for_best_model, args.greater_is_better = metric, metric not in LOWER_IS_BETTER
    if args.save_total_limit is not None:
        args.save_total_limit = max(2, args.save_total_limit)  # the best and the last


def _check(name: str, value: Any) -> None:
    if name in TAKEN:
        raise ConfigError(f"training.{name} cannot be set: {TAKEN[name]}")
    known = known_fields()
    if name not in known:
        meant = [MEANT[name]] if name in MEANT else near(name, known)
        raise ConfigError(
            f"unknown field 'training.{name}'{did_you_mean(f'training.{m}' for m in meant)} "
            "([training] takes the fields of transformers.TrainingArguments)"
        )
    hint = typing.get_type_hints(transformers.TrainingArguments)[name]
    if not _fits(value, hint):
        kind = hint.__name__ if isinstance(hint, type) else str(hint)
        raise ConfigError(f"training.{name} must be of type {kind}; got {value!r}")
    if name in CHOICES:
        one_of(f"training.{name}", str(value), CHOICES[name])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    words, holds = RANGES.get(name, ("", lambda value: True))
    if words and value is not None and not (number and holds(value)):
        raise ConfigError(f"training.{name} must be {words}; got {value!r}")
