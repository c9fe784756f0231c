"""What a call of `train` says beside its recipe, and the recipe that holds it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch import nn

from kdcache.errors import ConfigError, require_path
from kdcache.manifest import Json
from kdcache.models import StudentSpec, pick_device
from kdcache.models.built import is_built
from kdcache.models.student import WAYS
from kdcache.models.student_config import name_of_class
from kdcache.training.recipe import Recipe
from kdcache.training.stage import require_reached
from kdcache.training.student_table import KEPT, student_table

SHORTHANDS = {
    "seed": "seed",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "device": "use_cpu",
}
"""Keywords of `train`, options of `kdcache train` too, and the field of [training] each sets."""


def with_shorthands(recipe: Recipe, given: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """`recipe` with the fields that the `given` SHORTHANDS stand for, None for those left out.

    Raises ConfigError where an override sets the same field, or one that takes its effect away.
    """
    values = _given(given, "training", SHORTHANDS, overrides)
    stages = [stage.to_json() for stage in recipe.stages]
    for name in values:
        require_reached(stages, ("training", SHORTHANDS[name]), _flag(name))
    if "device" in values:
        values["device"] = on_cpu(values["device"], "train")
    fields = {SHORTHANDS[name]: value for name, value in values.items() if value is not None}
    training = {**recipe.training, **fields}
    steps = training.get("max_steps", -1)
    if "epochs" in values and isinstance(steps, int) and steps > 0:
        raise ConfigError(
            f"--epochs has no effect beside training.max_steps={steps}; leave one of the two out"
        )
    return dataclasses.replace(recipe, training=training) if fields else recipe


OF_TEXTS = ("tokenizer", "vocabulary")
"""Fields of [student] that say how it reads texts, and not where it comes from."""

DEV = {"dev": "file", "dev_split": "split", "dev_every": "every", "patience": "patience"}
"""Keywords of `train`, options of `kdcache train` too, and the field of [dev] each sets."""


def dev_fields(given: Mapping[str, Any], overrides: Sequence[str]) -> Json:
    """The fields of [dev] that a call sets by the keywords of DEV, None for those left out.

    Raises ConfigError where it names two dev sets, or an override sets the same field.
    """
    values = _given(given, "dev", DEV, overrides)
    files = values.get("dev", {})
    for file in files.values() if isinstance(files, Mapping) else [files]:
        require_path("the dev file", file, "path, which the run keeps in its recipe")
    if isinstance(files, Mapping):
        values |= {"dev": {name: str(file) for name, file in files.items()}} if files else {}
    else:
        values["dev"] = str(files)
    if {"dev", "dev_split"} <= values.keys():
        raise ConfigError("--dev and --dev-split both name the dev set; give one of the two")
    fields = {**DEV, "dev": "files"} if isinstance(files, Mapping) else DEV
    return {fields[name]: value for name, value in values.items()}


def _given(
    given: Mapping[str, Any], table: str, fields: Mapping[str, str], overrides: Sequence[str]
) -> Json:
    """The keywords that are given, with plain values; ConfigError where an override sets the field
    of `table` that one stands for.
    """
    values = {name: _plain(value) for name, value in given.items() if value is not None}
    set_too = _by_field(overrides)
    for name in values:
        field = f"{table}.{fields[name]}"
        if field in set_too:
            raise ConfigError(
                f"{_flag(name)} and --set {set_too[field]} set the same field, {field}; give one "
                "of the two"
            )
    return values


def _by_field(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by the field that each sets."""
    texts = [overrides] if isinstance(overrides, str) else overrides
    return {override.partition("=")[0].strip(): override for override in texts}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    """A number of numpy's as one that TOML knows."""
    return value.item() if isinstance(value, np.generic) else value


def on_cpu(device: Any, command: str) -> bool | None:
    """The field `use_cpu` for a device of a command; None: a GPU if there is one."""
    name = str(device)
    found = pick_device(name)
    if found.index:
        raise ConfigError(
            f"training runs on the first GPU it sees; for {name} let it see that one alone: "
            f"CUDA_VISIBLE_DEVICES={found.index} kdcache {command} --device cuda"
        )
    return None if name == "auto" else found.type == "cpu"


def require_one_student(
    overrides: Sequence[str],
    student: str | Path | nn.Module | None,
    layers: Sequence[int] | str | None,
    config: str | Path | None,
) -> None:
    """Raise ConfigError if an override says where the student comes from, and the call does too."""
    given = {"--student": student, "--init-from-teacher": layers, "--config": config}
    flags = [flag for flag, value in given.items() if value is not None]
    for name, override in _by_field(overrides).items():
        if flags and name in {f"student.{source}" for source in WAYS}:
            raise ConfigError(
                f"{flags[0]} and --set {override} both say where the student comes from; give one "
                "of the two"
            )


def with_student(
    recipe: Recipe,
    student: str | Path | nn.Module | None,
    layers: Sequence[int] | str | None,
    config: str | Path | None,
    same_tokenizer: bool = False,
) -> Recipe:
    """`recipe` with the student that a call asks for; its own where the call asks for none."""
    module = student if isinstance(student, nn.Module) else None
    given = {"checkpoint": student if module is None else None, "config": config}
    words = {"checkpoint": "the student", "config": "the student's configuration"}
    for name, value in given.items():
        if value is not None:
            require_path(words[name], value)
    chosen: Json = {name: str(value) for name, value in given.items() if value is not None}
    if module is not None:
        count = sum(parameter.numel() for parameter in module.parameters())
        chosen["module"] = f"{name_of_class(type(module))} of {count:,} parameters"
    if is_built(chosen.get("checkpoint", "")):
        chosen["built"] = chosen.pop("checkpoint")
    if layers is not None:
        chosen["init_from_teacher"] = layers
    chosen = _kept(recipe, chosen) if chosen else dict(recipe.student)
    if same_tokenizer:
        chosen["same_tokenizer"] = True
    return dataclasses.replace(recipe, student=student_table(chosen))


def _kept(recipe: Recipe, chosen: Json) -> Json:
    """A student that a call asks for, with what a recipe says of any."""
    return {**chosen, **{name: recipe.student[name] for name in KEPT if recipe.student.get(name)}}


def student_spec(
    recipe: Recipe, module: nn.Module | None = None, *, trust_remote_code: bool = False
) -> StudentSpec:
    """Where the student of a recipe comes from; ConfigError if it says none, or several.

    `module` is the student itself, where the recipe names the class of one. A recipe cannot trust
    in the place of a person.
    """
    chosen = {name: value for name, value in recipe.student.items() if name not in OF_TEXTS}
    if chosen.get("init_from_teacher") is not None:
        chosen["init_from_teacher"] = tuple(chosen["init_from_teacher"])
    if chosen.get("together") is not None:
        chosen["together"] = tuple(chosen["together"])
    if chosen.get("module") is not None:
        if module is None:
            raise ConfigError(
                f"the student of recipe {recipe.name} is a module, {chosen['module']}, which is "
                "given in Python: kdcache.train(..., student=module); or name another (--student)"
            )
        chosen["module"] = module
    return StudentSpec(**chosen, trust_remote_code=trust_remote_code)


def with_vocabulary(recipe: Recipe, vocabulary: Any, overrides: Sequence[str]) -> Recipe:
    """`recipe` with the tokens that a call lets its student keep; its own where it says none.

    Raises ConfigError where an override sets them too, or they make no sense.
    """
    fields = {"vocabulary": "vocabulary"}
    given = _given({"vocabulary": vocabulary}, "student", fields, overrides)
    if not given:
        return recipe
    return dataclasses.replace(recipe, student=student_table({**recipe.student, **given}))


def asked(
    recipe: Recipe,
    given: Mapping[str, Any],
    overrides: Sequence[str],
    vocabulary: Any,
    *,
    student: str | Path | nn.Module | None,
    layers: Sequence[int] | str | None,
    config: str | Path | None,
    same_tokenizer: bool = False,
) -> Recipe:
    """`recipe` with the student, the SHORTHANDS and the vocabulary that a call asks for.

    Raises ConfigError for those that do not go together, or with the overrides.
    """
    require_one_student(overrides, student, layers, config)
    chosen = with_student(recipe, student, layers, config, same_tokenizer)
    return with_vocabulary(with_shorthands(chosen, given, overrides), vocabulary, overrides)


def check_callbacks(callbacks: Any) -> list[Any]:
    """The callbacks as transformers takes them: objects, or classes made without arguments."""
    kind = transformers.TrainerCallback
    given = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    for callback in given:
        if not isinstance(callback, kind) and not (
            isinstance(callback, type) and issubclass(callback, kind)
        ):
            raise ConfigError(
                "callbacks is a list of transformers.TrainerCallback objects; got "
                f"{type(callback).__name__}"
            )
    return given
