"""The objective: the losses of a recipe bound to a cache and a student."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.losses.base import LABELS, Loss, Step
from kdcache.losses.bound import BoundLoss
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.pairs import Pairs
from kdcache.losses.passes import labels_only, makes_logits, passes
from kdcache.losses.schedules import Moment, Schedules, numbers
from kdcache.losses.taught import value_of
from kdcache.losses.teachers import Teaching
from kdcache.models import run
from kdcache.plans.batch import Batch
from kdcache.signals import HEAD, LOGITS, Activations, ModelSizes, Tap
from kdcache.spans import LOSS, span
from kdcache.training.inputs import BoundInputs, ChosenInputs
from kdcache.training.kept import LossState, first_state
from kdcache.training.learned import Learned
from kdcache.training.points import BoundPoints, elsewhere
from kdcache.training.serving import serve

Terms = dict[str, torch.Tensor]


class Objective:
    """The weighted sum of losses, and what it takes to compute it.

    Attributes:
        losses: the losses that are on, by name.
        bound: the same with what they match.
        arrays: arrays to read from the cache, and no others.
        reads: what the losses read out of the student.
        matrix: whether any reads logits themselves; else a language model's head need not be
            applied, and its fused losses do not.
        projections: learned linear maps from a student's width to the teacher's, and what losses
            learn besides under their names. Whoever trains must hand their parameters to the
            optimizer.
        hard_only: whether documents without a label would teach nothing.
        state: what losses keep between steps, which whoever trains has to save.
        notes: what a person should know, such as a loss that was left out.
        points: where documents of the cache are read, if it says so; None: where their texts are.
        elsewhere: the points of another teacher, where they are read again for some losses; None:
            for none.
        inputs: what stands in the place of the student's word embeddings; None: nothing does.
        schedules: of numbers of the losses, which `advance` changes; without it, they stay what
            they start with.
        seed: of the run, for policies that draw teachers.
        step: steps of the run before the one that is computed; whoever trains counts them.

    Raises:
        ConfigError: the cache, or a student of this shape, cannot serve a loss. Nothing is read
            for that, so it can be made before anything is loaded.
    """

    def __init__(
        self,
        losses: Mapping[str, Loss],
        cache: CacheSpec,
        student: ModelSizes,
        schedules: Schedules = MappingProxyType({}),
        *,
        teaching: Mapping[str, Teaching] = MappingProxyType({}),
        inputs: ChosenInputs | None = None,
        seed: int = 0,
    ) -> None:
        self.cache, self.seed, self.step = cache, seed, 0
        self.inputs = None if inputs is None else BoundInputs(inputs, cache, student)
        self.points = BoundPoints(cache, student) if cache.points else None
        if self.points is not None and self.inputs is not None:
            raise ConfigError(
                "inputs stand in the place of word embeddings, and the documents of a cache that "
                "`kdcache.ascend` wrote are read at points behind these: leave inputs out"
            )
        served = serve(losses, cache, student, schedules, teaching)
        self.losses, self.bound, self.schedules = served.losses, served.bound, served.schedules
        self.notes, self.hard_only = served.notes, served.hard_only
        matches = [match for one in self.bound.values() for match in one.matches]
        read = [*matches, *(soft for one in self.bound.values() for soft in one.soft.values())]
        self.elsewhere = elsewhere(cache, student, self.bound.values())
        moved = self.elsewhere and self.elsewhere.points
        more = [name for one in (self.inputs, self.points, moved) if one for name in one.arrays]
        self.arrays = list(dict.fromkeys([*(n for match in read for n in match.arrays), *more]))
        self.reads = list(dict.fromkeys(match.student for match in matches))
        self.matrix = makes_logits(self.bound)
        self.learned = Learned(self.bound, student)
        self.state = nn.ModuleDict(
            {
                name: LossState(state)
                for name, one in self.bound.items()
                if (state := first_state(one, student, cache)) is not None
            }
        )
        self._passes = passes(self.bound)

    @property
    def projections(self) -> nn.ModuleDict:
        """What losses learn beside the student."""
        return self.learned.modules

    @property
    def logits(self) -> bool:
        """Whether any loss is worked out from the student's logits, or the head in their place.

        One that holds other values against labels reads the labels alone where the logits stand.
        """
        return any(
            match.student == LOGITS and (match.teacher != LABELS or labels_only(one.matches))
            for one in self.bound.values()
            for match in one.matches
        )

    def taps(self, *, head: bool = False) -> list[Tap]:
        """What to read out of the student; with `head`, that in the place of its logits."""
        return [HEAD if head and tap == LOGITS else tap for tap in self.reads]

    def prepared(self, model: Any, batch: Batch) -> Batch:
        """The batch as a student reads it while it trains: itself, or with the embeddings that
        stand in the place of its own, of which gradients flow into its table.
        """
        if self.points is not None:
            return self.points.put(batch)
        return batch if self.inputs is None else self.inputs.put(model, batch)

    def read(self, model: Any, batch: Batch, taps: Sequence[Tap]) -> Activations:
        """What a student computes for a batch as it reads it while it trains: the `taps` where it
        reads it, and what losses take of it elsewhere.
        """
        seen = run(model, self.prepared(model, batch), taps, task=self.cache.task)
        return seen if self.elsewhere is None else self.elsewhere.beside(seen, model, batch)

    @property
    def changes(self) -> bool:
        """Whether any number has a schedule."""
        return bool(self.schedules or (self.inputs and self.inputs.schedules))

    def advance(self, moment: Moment) -> None:
        """Give the numbers that have a schedule what they are at a moment of the stage."""
        if self.inputs is not None:
            self.inputs.advance(moment)
        for name, schedules in self.schedules.items():
            loss: Any = self.bound[name].loss
            now = {field: schedule.at(moment) for field, schedule in schedules.items()}
            if any(getattr(loss, field) != value for field, value in now.items()):
                self.bound[name] = self.bound[name]._replace(loss=numbers(loss, now))
                self._passes = passes(self.bound)

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Give losses other weights, by name."""
        for name, one in self.bound.items():
            self.bound[name] = one._replace(loss=numbers(one.loss, {"weight": weights[name]}))
        self._passes = passes(self.bound)

    def scheduled(self) -> dict[str, float]:
        """Numbers that have a schedule as they are now, by "NAME.FIELD"."""
        inputs = {} if self.inputs is None else self.inputs.scheduled()
        return inputs | {
            f"{name}.{field}": float(getattr(self.bound[name].loss, field))
            for name, schedules in self.schedules.items()
            for field in schedules
        }

    def totals(self, batches: Sequence[Batch]) -> list[float]:
        """What each loss is the mean over in some batches, in the order of `losses`."""
        return [sum(batch.total(one.rows) for batch in batches) for one in self.bound.values()]

    def __call__(
        self, activations: Activations, batch: Batch, totals: Sequence[float] | None = None
    ) -> tuple[torch.Tensor, Terms]:
        """The loss of a batch and its terms before their weights, detached.

        `activations` are the `taps` of the student. With the `totals` of a step, the loss is what
        the batch adds to the means over it; else the batch is all of a step.
        """
        steps = self._steps(activations, batch, totals)
        pairs = self._pairs(activations, batch)
        self.learned.begin()
        parts: list[torch.Tensor] = []
        terms: Terms = {}
        for losses, together in self._passes:
            with span(LOSS, losses):
                if together is None:
                    (one,) = losses
                    value = self._value(one, pairs[one.at], steps[one.name])
                    parts.append(one.loss.weight * value)
                    terms[one.name] = value.detach()
                    continue
                total, values = together(
                    [one.loss for one in losses],
                    [[pairs[one.at].of(match) for match in one.matches] for one in losses],
                    [steps[one.name] for one in losses],
                )
                parts.append(total)
                terms |= {one.name: value for one, value in zip(losses, values, strict=True)}
        for name, state in self.state.items():
            typing.cast(LossState, state).keep(steps[name].state)
        parts += self.learned.idle()
        return torch.stack(parts).sum(), terms

    def parts(
        self, activations: Activations, batch: Batch, totals: Sequence[float] | None = None
    ) -> Terms:
        """Every loss times its weight, worked out by itself and with a gradient of its own."""
        steps = self._steps(activations, batch, totals)
        pairs = self._pairs(activations, batch)
        return {
            name: one.loss.weight * self._value(one, pairs[one.at], steps[name])
            for name, one in self.bound.items()
        }

    def _pairs(self, activations: Activations, batch: Batch) -> dict[str, Pairs]:
        """The pairs of a batch, by the teacher at whose points the student read it."""
        return {
            at: Pairs(
                self.cache, batch, self._read_at(activations, at), project=self.learned.project
            )
            for at in dict.fromkeys(one.at for one in self.bound.values())
        }

    def _read_at(self, activations: Activations, at: str) -> Activations:
        """What was read of the student where losses look at it."""
        if not at:
            return activations
        if activations.moved is None:
            raise ConfigError(
                f"losses read the student at the points of {at}, and it was run at the texts "
                "alone: take what objective.read(model, batch, objective.taps()) gives"
            )
        return activations.moved

    def _value(self, one: BoundLoss, pairs: Pairs, step: Step) -> torch.Tensor:
        """What a loss comes to by itself, before its weight."""
        self.learned.use(one.name)
        together: Any = getattr(one.loss, "together", None)
        if together is not None:
            taught = {n: [pairs.of(m) for m in found] for n, found in one.taught.items()}
            value: torch.Tensor = together(taught, step)
            return value
        if one.choose:
            return value_of(one, pairs, step, self.seed, self.step)
        return one.loss.value([pairs.of(match) for match in one.matches], step)

    def _steps(
        self, activations: Activations, batch: Batch, totals: Sequence[float] | None
    ) -> dict[str, Step]:
        """What each loss knows of a batch."""
        whole = self.totals([batch]) if totals is None else totals
        return {
            name: Step(
                batch=batch,
                labels=self.cache.labels,
                activations=self._read_at(activations, one.at),
                rows=one.rows,
                total=total,
                teacher=one.matches[0].source.shape if one.matches else None,
                state=self.state_of(name),
                learned=self.learned.of(name),
                seed=self.seed,
                number=self.step,
                placing=self.cache.places,
            )
            for (name, one), total in zip(self.bound.items(), whole, strict=True)
        }

    @property
    def rates(self) -> dict[nn.Parameter, float]:
        """Factors on the learning rate of what losses learn beside the student, where not 1."""
        factors = {name: getattr(self.losses[name], "rate", 1.0) for name in self.learned.losses}
        return {
            parameter: factor
            for name, factor in factors.items()
            if factor != 1
            for parameter in self.projections[name].parameters()
        }

    def state_of(self, name: str) -> dict[str, torch.Tensor]:
        """What a loss has kept of the steps so far, by name."""
        return typing.cast(LossState, self.state[name]).now() if name in self.state else {}
