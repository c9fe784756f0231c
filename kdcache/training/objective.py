"""The objective: the losses of a recipe bound to a cache and a student."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.losses.base import CacheFacts, Loss, Needs, Over, Step
from kdcache.losses.cross_entropy import Hard
from kdcache.losses.kl import SoftKL
from kdcache.losses.shared import of_student, shared_outputs
from kdcache.plans.batch import Batch
from kdcache.signals import (
    Activations,
    HeadLabels,
    HiddenHead,
    LayerRows,
    SoftLabels,
    TeacherShape,
)
from kdcache.tasks import Subset

Terms = dict[str, torch.Tensor]
Shares = Mapping[str, float]
"""By loss: what part a batch is of all that the loss of a step is the mean over."""

COUNTS: dict[Over, Callable[[Loss, Batch, Needs], float]] = {
    "rows": lambda loss, batch, needs: loss.rows(batch, needs),
    "documents": lambda loss, batch, needs: len(batch["docs"]),
    "batch": lambda loss, batch, needs: len(batch["docs"]),
}


class Objective:
    """The weighted sum of losses, and what it takes to compute it.

    Attributes:
        losses: the losses that are on, by name.
        arrays: arrays to read from the cache, and no others.
        logits: whether any loss reads the student's logits.
        matrix: whether any reads them as a matrix; else a language model's head need not be
            applied, and its fused losses do not.
        hidden: whether any loss reads the student's hidden states.
        projections: learned linear maps from the student's width to the teacher's. Whoever trains
            must hand their parameters to the optimizer.
        hard_only: whether documents without a label would teach nothing.
        notes: what a person should know, such as a loss that was left out.

    Raises ConfigError if the cache, or a student of this shape, cannot serve a loss. Nothing is
    read for that, so it can be made before anything is loaded.
    """

    def __init__(
        self, losses: Mapping[str, Loss], facts: CacheFacts, student: TeacherShape
    ) -> None:
        self.facts = facts
        self.losses, self.notes = _active(losses, facts)
        self._shared = shared_outputs(facts, student)
        self._wider = self._shared is not None and self._shared < facts.shape.outputs
        if self._shared is not None:
            self.notes.append(
                f"the teacher has {facts.shape.outputs:,} outputs and the student "
                f"{student.outputs:,}: they are compared in the {self._shared:,} that both have"
            )
        self.needs = {name: loss.needs(name, facts, student) for name, loss in self.losses.items()}
        self.arrays = _arrays(self.needs.values(), facts)
        read = dict.fromkeys(name.partition("/")[0] for name in self.arrays)
        self._spaces = {name: facts.space_of(name) for name in read}
        self.logits = any(not needs.pairs for needs in self.needs.values())
        self.matrix = any(needs.matrix for needs in self.needs.values())
        self.hidden = any(needs.pairs for needs in self.needs.values())
        names = {name for needs in self.needs.values() for name in needs.projections.values()}
        self.projections = nn.ModuleDict(
            {name: nn.Linear(student.hidden, facts.shape.hidden) for name in sorted(names)}
        )
        self.hard_only = all(isinstance(loss, Hard) for loss in self.losses.values())
        self._fused = _fused(self.losses, facts)

    def counts(self, batch: Batch) -> list[float]:
        """What each loss is the mean over in a batch, in the order of `losses`."""
        if batch.idle:
            return [0.0] * len(self.losses)
        return [
            float(COUNTS[loss.over](loss, batch, self.needs[name]))
            for name, loss in self.losses.items()
        ]

    def __call__(
        self, outputs: Activations, batch: Batch, shares: Shares | None = None
    ) -> tuple[torch.Tensor, Terms]:
        """The loss of a batch and its terms before their weights, detached.

        `outputs` are the student's, with hidden states if `self.hidden`. With `shares`, what the
        batch adds to those of its step.
        """
        step = self._step(outputs, batch)
        share = dict.fromkeys(self.losses, 1.0) if shares is None else shares
        parts: list[torch.Tensor] = []
        terms: Terms = {}
        if self._fused is not None:
            soft, hard = self._fused
            loss = self.losses[soft]
            assert isinstance(loss, SoftKL)
            weights = [self.losses[name].weight * share[name] for name in self._fused]
            both = loss.with_hard(step, *weights)
            parts.append(both.total)
            terms |= {soft: both.soft, hard: both.hard}
        for name, loss in self.losses.items():
            if name not in terms:
                value = loss.value(step, self.needs[name])
                parts.append(loss.weight * share[name] * value)
                terms[name] = value.detach()
        if shares is not None:
            terms = {name: share[name] * term for name, term in terms.items()}
        return torch.stack(parts).sum(), terms

    def _step(self, outputs: Activations, batch: Batch) -> Step:
        if self._shared is not None:
            outputs = of_student(outputs, self._shared)
        return Step(
            student=outputs,
            beside={name: self._beside(name, outputs, batch) for name in self._spaces},
            labels=batch["labels"],
            soft=self._soft(batch),
            wider=self._wider,
            hidden={layer: self._layer(batch, layer) for layer in _layers(self.needs.values())},
            project=lambda name, rows: self.projections[name](rows),
        )

    def _beside(self, signal: str, outputs: Activations, batch: Batch) -> Activations:
        """What the student said at the rows of a signal."""
        rows = batch.get(f"{signal}/kept")
        return outputs.at_rows(self.facts.task, self._spaces[signal], rows)

    def _soft(self, batch: Batch) -> SoftLabels | HeadLabels | None:
        if not any(needs.logits for needs in self.needs.values()):
            return None
        signal: Any = self.facts.signals["logits"]
        if isinstance(signal, HiddenHead):
            labels = signal.labels(batch)
            return labels.first(self._shared) if self._wider and self._shared else labels
        decoded: SoftLabels = signal.decode(batch, self.facts.shape.outputs)
        return decoded

    def _layer(self, batch: Batch, layer: int) -> LayerRows:
        signal: Any = self.facts.signals["hidden"]
        decoded: LayerRows = signal.decode(batch, layer)
        return decoded


def _active(losses: Mapping[str, Loss], facts: CacheFacts) -> tuple[dict[str, Loss], list[str]]:
    """The losses that are on, and messages about those that a corpus without labels turns off."""
    on = {name: loss for name, loss in losses.items() if loss.weight > 0}
    if not on:
        raise ConfigError("every loss of the recipe has weight 0; give one of them a weight")
    if facts.labelled:
        return on, []
    hard = [name for name, loss in on.items() if isinstance(loss, Hard)]
    kept = {name: loss for name, loss in on.items() if name not in hard}
    if not kept:
        raise ConfigError(
            f"the recipe trains on hard labels alone (losses.{hard[0]}) and the corpus has no "
            "labels; choose a recipe with soft labels, such as kd"
        )
    return kept, ["hard-label loss is off: the corpus has no labels"] if hard else []


def _layers(needs: Collection[Needs]) -> list[int]:
    return sorted({teacher for need in needs for _, teacher in need.pairs})


def _arrays(needs: Collection[Needs], facts: CacheFacts) -> list[str]:
    """Arrays of the logits if any loss reads them, and of the mapped layers of hidden states."""
    wanted = ["logits/"] if any(need.logits for need in needs) else []
    wanted += [f"hidden/L{layer}/" for layer in _layers(needs)]
    return [
        spec.name
        for signal in facts.signals.values()
        for spec in signal.arrays(facts.task, facts.shape)
        if spec.name.startswith(tuple(wanted))
    ]


def _fused(losses: Mapping[str, Loss], facts: CacheFacts) -> tuple[str, str] | None:
    """Names of a soft and a hard loss that one pass over the logits can serve: the same rows."""
    if "logits" in facts.signals and isinstance(facts.space_of("logits"), Subset):
        return None
    soft = [name for name, loss in losses.items() if isinstance(loss, SoftKL)]
    hard = [name for name, loss in losses.items() if isinstance(loss, Hard)]
    return (soft[0], hard[0]) if soft and hard else None
