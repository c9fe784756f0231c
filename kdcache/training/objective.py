"""The objective: the losses of a recipe bound to a cache and a student."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.losses.base import LABELS, Loss, Step
from kdcache.losses.binding import bind, learned_maps
from kdcache.losses.bound import BoundLoss
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.pairs import Pairs
from kdcache.losses.passes import labels_only, makes_logits, passes
from kdcache.losses.schedules import Moment, Schedules, is_on, moments, numbers
from kdcache.losses.taught import value_of
from kdcache.losses.teachers import FIRST, Teaching
from kdcache.models import run
from kdcache.plans.batch import Batch
from kdcache.signals import HEAD, LOGITS, Activations, ModelSizes, Tap
from kdcache.training.inputs import BoundInputs, ChosenInputs
from kdcache.training.kept import LossState, first_state, own_module
from kdcache.training.points import BoundPoints, elsewhere

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
        on = {name: loss for name, loss in losses.items() if is_on(name, loss, schedules)}
        if not on:
            raise ConfigError("every loss of the recipe has weight 0; give one of them a weight")
        hard = [
            name for name, loss in on.items() if labels_only(loss.matches(student, cache.shape))
        ]
        self.losses, self.notes = (on, []) if cache.labelled else _without(hard, on)

        def told(name: str, loss: Loss) -> BoundLoss:
            return bind(name, loss, cache, student, teaching.get(name, FIRST))

        self.schedules = {n: s for n, s in schedules.items() if n in self.losses}
        for name, changing in self.schedules.items():
            for loss in moments(self.losses[name], changing):
                told(name, loss)  # refuses numbers it will come to
        self.bound = {name: told(name, loss) for name, loss in self.losses.items()}
        matches = [match for one in self.bound.values() for match in one.matches]
        self.notes += [*_notes(self.bound, student), *_lone(self.bound, teaching)]
        read = [*matches, *(soft for one in self.bound.values() for soft in one.soft.values())]
        self.elsewhere = elsewhere(cache, student, self.bound.values())
        moved = self.elsewhere and self.elsewhere.points
        more = [name for one in (self.inputs, self.points, moved) if one for name in one.arrays]
        self.arrays = list(dict.fromkeys([*(n for match in read for n in match.arrays), *more]))
        self.reads = list(dict.fromkeys(match.student for match in matches))
        self.matrix = makes_logits(self.bound)
        own = {name: own_module(one, student) for name, one in self.bound.items()}
        modules = {name: module for name, module in own.items() if module is not None}
        learned = learned_maps(self.bound, modules)
        self._learned = modules.keys()
        if student.peers and modules:
            raise ConfigError(
                f"losses.{min(modules)} learns a layer of its own, which students that are trained "
                "together would share: leave it out, or train one student"
            )
        if student.peers and learned:
            raise ConfigError(
                f"a loss learns a map ({min(learned)}), which students that are trained together "
                "would share: leave it out, or make the students as wide as the teacher"
            )
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(
                    student.width(learned[name].student.name, learned[name].student.layer),
                    learned[name].source.shape.width(learned[name].teacher.name),
                )
                for name in sorted(learned)
            }
            | modules
        )
        self.state = nn.ModuleDict(
            {
                name: LossState(state)
                for name, one in self.bound.items()
                if (state := first_state(one, student, cache)) is not None
            }
        )
        self._applied: set[str] = set()
        self.hard_only = self.losses.keys() <= set(hard)
        self._passes = passes(self.bound)

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
        self._applied.clear()
        parts: list[torch.Tensor] = []
        terms: Terms = {}
        for losses, together in self._passes:
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
        parts += self._idle()
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
            at: Pairs(self.cache, batch, self._read_at(activations, at), project=self._project)
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
        self._applied |= self._learned & {one.name}
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
                learned=self.projections[name] if name in self._learned else None,
                seed=self.seed,
                number=self.step,
            )
            for (name, one), total in zip(self.bound.items(), whole, strict=True)
        }

    @property
    def rates(self) -> dict[nn.Parameter, float]:
        """Factors on the learning rate of what losses learn beside the student, where not 1."""
        factors = {name: getattr(self.losses[name], "rate", 1.0) for name in self._learned}
        return {
            parameter: factor
            for name, factor in factors.items()
            if factor != 1
            for parameter in self.projections[name].parameters()
        }

    def state_of(self, name: str) -> dict[str, torch.Tensor]:
        """What a loss has kept of the steps so far, by name."""
        return typing.cast(LossState, self.state[name]).now() if name in self.state else {}

    def _idle(self) -> list[torch.Tensor]:
        """Zeros that depend on the maps of teachers that were not chosen: DDP waits for a gradient
        of every parameter, and any number of ranks steps alike.
        """
        idle = [linear for name, linear in self.projections.items() if name not in self._applied]
        return [0.0 * value.sum() for linear in idle for value in linear.parameters()]

    def _project(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        self._applied.add(name)
        linear: Any = self.projections[name]
        projected: torch.Tensor = linear(rows.to(linear.weight.dtype))  # autocast's are smaller
        return projected


def _notes(bound: Mapping[str, BoundLoss], student: ModelSizes) -> list[str]:
    """What a person should know of the teachers that losses learn from."""
    found: dict[str, None] = {}
    for one in bound.values():
        for match in one.matches:
            if match.outputs is None:
                continue
            theirs, prefix = match.source.shape.outputs, match.source.prefix
            teacher = f"teacher {match.source.name}" if prefix else "the teacher"
            note = (
                f"{teacher} has {theirs:,} outputs and the student {student.outputs:,}: they are "
                f"compared in the {match.outputs:,} that both have"
            )
            found[note] = None
    return list(found)


def _lone(bound: Mapping[str, BoundLoss], teaching: Mapping[str, Teaching]) -> Iterator[str]:
    """What to say of losses that choose among all teachers where there is but one."""
    for name, one in bound.items():
        if name in teaching and teaching[name].teachers == "all" and len(one.taught) == 1:
            yield (
                f"losses.{name} learns from all teachers of the cache, and there is one, "
                f"{next(iter(one.taught))}: `kdcache merge` puts several into a cache"
            )


def _without(hard: Sequence[str], losses: Mapping[str, Loss]) -> tuple[dict[str, Loss], list[str]]:
    """The losses but those that a corpus without labels turns off, and messages about these."""
    remaining = {name: loss for name, loss in losses.items() if name not in hard}
    if not remaining:
        raise ConfigError(
            f"the recipe trains on hard labels alone (losses.{hard[0]}) and the corpus has no "
            "labels; choose a recipe with soft labels, such as kd"
        )
    return remaining, ["hard-label loss is off: the corpus has no labels"] if hard else []
