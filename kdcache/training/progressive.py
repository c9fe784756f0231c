"""Stages of which there is one for each layer of a student, the lowest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from kdcache.errors import ConfigError, said_of
from kdcache.losses import Loss
from kdcache.losses.layer_maps import layer_pairs
from kdcache.models.student import student_sizes
from kdcache.store import Cache
from kdcache.training.options import student_spec
from kdcache.training.recipe import Recipe
from kdcache.training.stage import Stage


def by_layer(
    recipe: Recipe, cache: Cache, module: nn.Module | None, *, trust_remote_code: bool
) -> Recipe:
    """The recipe with stages for all layers of the student in the place of a progressive one.

    Raises ConfigError for layers and layer maps that do not fit the depths of student and teacher.
    """
    if not any(stage.progressive or stage.layer for stage in recipe.stages):
        return recipe
    if module is not None:
        raise ConfigError(
            f"recipe {recipe.name} trains a layer at a time, for which a module's layers are not "
            "known: give its stages trainable=[globs] instead of progressive or layer"
        )
    spec = student_spec(recipe, None, trust_remote_code=trust_remote_code)
    depths = student_sizes(spec, cache).layers, cache.shape.layers
    for stage in recipe.stages:
        if stage.layer > depths[0]:
            raise ConfigError(
                f"stage {stage.name!r} trains layer {stage.layer}, and the student has {depths[0]}"
            )
    each = [_stages(s, *depths) if s.progressive else [s] for s in recipe.stages]
    return replace(recipe, stages=tuple(stage for stages in each for stage in stages))


def _stages(stage: Stage, student: int, teacher: int) -> list[Stage]:
    made = [
        replace(
            stage,
            name=f"{stage.name}-{layer}",
            of=stage.name,
            progressive=False,
            layer=layer,
            losses=losses,
            schedules={name: s for name, s in stage.schedules.items() if name in losses},
            teaching={name: t for name, t in stage.teaching.items() if name in losses},
        )
        for layer in range(1, student + 1)
        if (losses := dict(_losses(stage, layer, student, teacher)))
    ]
    if not made:
        raise ConfigError(
            f"stage {stage.name!r} is one for each layer of the student, and its losses pair none "
            f"of the {student}: give them a layer_map, such as 'blocks'"
        )
    return made


def _losses(stage: Stage, layer: int, student: int, teacher: int) -> Iterator[tuple[str, Loss]]:
    """The losses of a layer: of those with a layer map its pairs, those without as they are.

    The embedding output goes with the first layer.
    """
    for name, loss in stage.losses.items():
        changing: Any = loss
        if not hasattr(loss, "layer_map"):
            yield name, loss
            continue
        known = changing.layer_map or f"{student}:{teacher}"
        with said_of(f"{stage.prefix}losses.{name}"):
            pairs = layer_pairs(known, student, teacher)
        own = [f"{ours}:{theirs}" for ours, theirs in pairs if max(ours, 1) == layer]
        if own:
            yield name, replace(changing, layer_map=",".join(own))
