"""A student of several tasks: models of one encoder, each with a head of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from kdcache.errors import ConfigError, ModelError
from kdcache.models.auto import auto_class, silent_transformers
from kdcache.models.module_student import ModuleStudent
from kdcache.models.student import StudentSpec, load_student, student_config
from kdcache.models.student_config import StudentConfig
from kdcache.models.together import save_all, together_config

if TYPE_CHECKING:
    from kdcache.store import Cache

CLASSIFIER = "classifier"
"""What makes the logits of a student of `kdcache.students`, and is no part of its encoder."""


class HeadsModel(transformers.PreTrainedModel):
    """Models that have the parts of an encoder in common, as a Trainer takes one.

    A forward is of one of them, `active_head`: that of the cache whose documents a step has. Each
    is a whole model of transformers', which is saved, scored and shipped by itself.

    Attributes:
        turn: which of `task_heads` is run.
    """

    config_class = StudentConfig

    def __init__(self, config: StudentConfig, heads: Sequence[Any]) -> None:
        super().__init__(config)
        self.task_heads = nn.ModuleList(heads)
        self.turn = 0

    @property
    def active_head(self) -> Any:
        """The model that is run."""
        return self.task_heads[self.turn]

    def forward(self, **inputs: Any) -> Any:
        """What the active model computes."""
        return self.active_head(**inputs)

    def idle(self, turn: int) -> list[nn.Parameter]:
        """The parameters that no step of a head reaches: those of other heads alone."""
        own = {id(parameter) for parameter in self.task_heads[turn].parameters()}
        return [parameter for parameter in self.task_heads.parameters() if id(parameter) not in own]

    def save_pretrained(  # type: ignore[override]  # what a Trainer asks for
        self, save_directory: str | Path, *, is_main_process: bool = True, **_: Any
    ) -> None:
        """Write the weights of all, for a checkpoint: heads are saved by themselves."""
        if is_main_process:
            save_all(self, Path(save_directory))


def heads_config(spec: StudentSpec, caches: Mapping[str, Cache]) -> StudentConfig:
    """The configuration of a student with a head for each cache, by the names of the heads.

    Nothing is loaded for it. Raises ModelError if the heads cannot have one encoder, ConfigError
    for a student that has one head.
    """
    if spec.module is not None or spec.together:
        raise ConfigError(
            f"a head for each of {', '.join(caches)} is made of a checkpoint (--student FOLDER), a "
            "configuration (--config), teacher layers (--init-from-teacher) or a student of "
            "kdcache's (--student bilstm); got a module of its own, or several students"
        )
    if spec.shared:
        raise ConfigError(
            f"student.shared={spec.shared} is for a student of one head, and this one has "
            f"{len(caches)}: --set student.shared=, or train on one cache"
        )
    members = [student_config(spec, cache) for cache in caches.values()]
    config = together_config("heads", members, causal=False)
    config.heads = tuple(caches)
    drawn_heads(config, caches.values())
    return config


def drawn_heads(config: StudentConfig, caches: Iterable[Cache]) -> HeadsModel:
    """Such a student without its weights, for their names and shapes."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]), silent_transformers():
        heads = [
            auto_class(cache.plan.task).from_config(own)
            for own, cache in zip(config.members, caches, strict=True)
        ]
        return with_one_encoder(config, heads)


def load_heads(
    config: StudentConfig, spec: StudentSpec, caches: Iterable[Cache], *, seed: int
) -> HeadsModel:
    """Make the student; each head is made as the only one would be, the encoder is the first's.

    New weights are drawn from `seed`, those of every further head from the next number.
    """
    heads = [load_student(cache, spec, seed=seed + k) for k, cache in enumerate(caches)]
    return with_one_encoder(config, heads)


def with_one_encoder(config: StudentConfig, heads: Sequence[Any]) -> HeadsModel:
    """Let models have the parts of their encoders in common that several of them have.

    A part is that of the first model that has one of its name: a masked language model has no
    pooler, and the classifiers beside it have one together. Raises ModelError for parts of
    different shapes.
    """
    known: dict[str, tuple[str, Any]] = {}
    for name, head in zip(config.heads, heads, strict=True):
        encoder = encoder_of(head)
        for part, value in _parts(encoder, head):
            first, shared = known.setdefault(part, (name, value))
            _require_same(part, (first, shared), (name, value))
            setattr(encoder, part, shared)
        if not isinstance(head, ModuleStudent):
            head.tie_weights()  # an output layer that is the embeddings' has to be the shared ones'
    return HeadsModel(config, heads)


def encoder_of(head: Any) -> Any:
    """What of a model is the same for every task."""
    if isinstance(head, ModuleStudent):
        return head.student
    if head.base_model is head:
        raise ModelError(
            f"{type(head).__name__} does not tell its encoder from its head: train a student for "
            "each task"
        )
    return head.base_model


def _parts(encoder: Any, head: Any) -> list[tuple[str, Any]]:
    """Modules and weights that lie directly in an encoder, by name."""
    own = {CLASSIFIER} if isinstance(head, ModuleStudent) else set()
    found = [*encoder.named_children(), *encoder.named_parameters(recurse=False)]
    return [(name, value) for name, value in found if name not in own]


def _require_same(part: str, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    shapes, theirs = _shapes(one[1]), _shapes(other[1])
    for name in {**shapes, **theirs}:
        if shapes.get(name) != theirs.get(name):
            raise ModelError(
                f"heads {one[0]} and {other[0]} cannot have one encoder: {part}{name} is "
                f"{shapes.get(name)} in the first and {theirs.get(name)} in the second: start from "
                "a checkpoint (--student) or a configuration (--config), which are the same for "
                "both"
            )


def _shapes(value: Any) -> dict[str, list[int]]:
    if isinstance(value, nn.Module):
        return {f".{name}": list(tensor.shape) for name, tensor in value.named_parameters()}
    return {"": list(value.shape)}
