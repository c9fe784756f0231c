"""A student that takes over its teacher's classifier, by way of what a loss learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from kdcache.errors import ConfigError, ModelError
from kdcache.losses.bound import BoundLoss
from kdcache.models.auto import auto_class, silent_transformers
from kdcache.models.classifiers import classifier_of, put_classifier
from kdcache.models.projected import Layer, with_layers
from kdcache.models.student_config import StudentConfig
from kdcache.signals.features import CLASSIFIER, ClassifierInputs
from kdcache.store import Cache
from kdcache.tasks import Task
from kdcache.training.objective import Objective


class Reused:
    """The teacher's classifier behind a projector that is being learned.

    Attributes:
        name: of the loss that learns the projector.
    """

    def __init__(self, objective: Objective, bound: BoundLoss) -> None:
        self.name, self.objective = bound.name, objective
        signal = bound.matches[0].held
        assert isinstance(signal, ClassifierInputs)
        assert signal.file is not None
        weight, bias = signal.file.layers[""]
        self.classifier = weight.float(), None if bias is None else bias.float()

    def layers(self) -> list[Layer]:
        """The projector as it is now, and the classifier behind it."""
        projector: Any = self.objective.projections[self.name]
        found = projector.layers(self.objective.state_of(self.name))
        device = found[0].weight.device
        weight, bias = self.classifier
        last = weight.to(device), None if bias is None else bias.to(device), False
        return [*found, last]

    def begin(self, student: Any) -> None:
        """Let the student's logits be what comes out of these from now on."""
        put_classifier(student, _AsItIs(self.layers))

    @torch.no_grad()
    def end(self, student: Any) -> Any:
        """The student with a classifier of its own that gives these logits."""
        return with_layers(student, self.layers())


class _AsItIs(nn.Module):
    """A classifier without parameters: layers as they are when it is asked."""

    def __init__(self, layers: Callable[[], Sequence[Layer]]) -> None:
        super().__init__()
        self._layers = layers

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        for weight, bias, relu in self._layers():
            made = linear(
                read, weight.to(read.dtype), None if bias is None else bias.to(read.dtype)
            )
            read = made.relu() if relu else made
        return read


def reused(
    objectives: Sequence[Objective], cache: Cache, config: Any, *, heads: Sequence[str] = ()
) -> Reused | None:
    """What a student takes over, of a configuration; None: none of the losses asks for that.

    Raises ConfigError where two ask, the cache does not hold the teacher's classifier, or the
    student has several heads, or one that is not one linear layer.
    """
    objective = objectives[0]
    asking = [one for one in objective.bound.values() if getattr(one.loss, "reuses", False)]
    if not asking:
        return None
    first, *others = asking
    if heads:
        raise ConfigError(
            f"losses.{first.name} puts the teacher's classifier into the student, which gets "
            f"{len(heads)} heads here: train on one cache, or leave the loss out"
        )
    if others:
        raise ConfigError(
            f"losses.{first.name} and losses.{others[0].name} both make the teacher's classifier "
            "the student's: leave one of them out"
        )
    view = cache.views[first.matches[0].source.name]
    if CLASSIFIER not in view.files:
        raise ConfigError(
            f"losses.{first.name} takes over the teacher's classifier, and {cache.path} has none: "
            "it was built before kdcache kept them, or the teacher's has layers of its own; build "
            "one with --signal pooled from a teacher with a linear classifier, such as BERT"
        )
    if not _is_linear(config, cache.plan.task):
        raise ConfigError(
            f"losses.{first.name} puts a classifier into the student, and {config.model_type} has "
            "none that is one linear layer: choose a student such as BERT or DistilBERT"
        )
    return Reused(objective, first)


def _is_linear(config: Any, task: Task) -> bool:
    """Whether a model of a configuration has a classifier that is one linear layer."""
    if isinstance(config, StudentConfig):
        return False
    with torch.device("meta"), torch.random.fork_rng(devices=[]), silent_transformers():
        model = auto_class(task).from_config(config)
    try:
        return type(classifier_of(model)) is nn.Linear
    except ModelError:
        return False
