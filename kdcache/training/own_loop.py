"""The parts of a run for loops of one's own: a student, and an objective that fits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.models import check_taps, load_student
from kdcache.models.declared import module_config
from kdcache.models.teacher import model_sizes
from kdcache.store import Cache, Place, open_cache
from kdcache.training.objective import Objective
from kdcache.training.options import student_spec, with_student
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.specs import cache_spec


def make_student(
    cache: Place | Cache,
    *,
    student: str | Path | nn.Module | None = None,
    init_from_teacher: Sequence[int] | str | None = None,
    config: str | Path | None = None,
    seed: int = 0,
    same_tokenizer: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """The student that `kdcache.train` would train, as a model of transformers', in training mode.

    Exactly one of `student`, `init_from_teacher` and `config` is given; all are as in `train`. A
    module of one's own comes as a model around it, with `student` for its attribute, that `run`
    reads and `save_pretrained` saves.

    Args:
        seed: of new weights.

    Raises:
        ConfigError: options that do not go together.
        ModelError: a student that cannot be made, or does not fit the cache.
    """
    source = cache if isinstance(cache, Cache) else open_cache(cache)
    recipe = with_student(
        replace(load_recipe("kd"), student={}), student, init_from_teacher, config, same_tokenizer
    )
    module = student if isinstance(student, nn.Module) else None
    spec = student_spec(recipe, module, trust_remote_code=trust_remote_code)
    return load_student(source, spec, seed=seed).train()


def make_objective(
    cache: Place | Cache,
    recipe: str | Path | Recipe,
    student: nn.Module,
    overrides: Sequence[str] = (),
    seed: int = 0,
) -> Objective:
    """The losses of a recipe on a cache, for a student that is there.

    Args:
        recipe: a shipped one's name, a file, or a Recipe, of which the losses are read.
        student: a model, as `make_student` gives it, or a module as `train` takes it.
        overrides: fields of the recipe, such as "losses.kl.temperature=4".
        seed: of the draws of teachers, and of the new weights of learned maps.

    Raises:
        ConfigError: the cache, or a student of this shape, cannot serve a loss.
        ModelError: the student does not give a tap.
    """
    source = cache if isinstance(cache, Cache) else open_cache(cache)
    chosen = load_recipe(recipe, overrides)
    if chosen.stages:
        raise ConfigError(
            f"recipe {chosen.name} has {len(chosen.stages)} stages, and an objective is of one: "
            "give it one of load_recipe(...).in_stages()"
        )
    if chosen.balance is not None:
        raise ConfigError(
            f"recipe {chosen.name} sets the weights of its losses by their gradients (balance), "
            "which kdcache.train measures: give weights, and leave balance out"
        )
    if chosen.data.weighting is not None:
        raise ConfigError(
            f"recipe {chosen.name} weighs documents (data.example_weights), which is for "
            'kdcache.train: put weights into batch["example_weight"], and leave it out, '
            'overrides=["data.example_weights="]'
        )
    config = module_config(source, student)
    known = cache_spec(source, len(source.plan.labelled_docs), several=chosen.several)
    sizes = model_sizes(config, source.plan.task)
    options: Any = {"teaching": chosen.teaching, "inputs": chosen.inputs, "seed": seed}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = Objective(chosen.losses, known, sizes, chosen.schedules, **options)
    check_taps(config, objective.reads)
    return objective
