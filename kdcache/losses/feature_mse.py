"""Hidden states: squared error of student layers from cached teacher layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.losses.base import CacheFacts, Needs, Over, Step, check_number, exact, layers_text
from kdcache.losses.layer_maps import LAYER_MAPS, LayerMap, Pairs, explicit_pairs, layer_pairs
from kdcache.plans.batch import Batch
from kdcache.signals import POSITIONS, Activations, Hidden, LayerRows, Tap, TeacherShape
from kdcache_kernels import hidden_mse

NORMALIZE = ("none", "l2", "layernorm")
PROJECTIONS = ("auto", "none", "linear")
SUMS = ("mean", "sum")
PADS = ("out", "count")
SERVES = {"all": ("all", "cls", "masked")}
"""Positions that can be picked out of what a cache holds; others serve themselves only."""


@dataclass(frozen=True, kw_only=True)
class HiddenMSE:
    """Mean squared error between hidden states, over rows, width and mapped layers.

    | paper                                | map        | positions | normalize | layers | pads  |
    |--------------------------------------|------------|-----------|-----------|--------|-------|
    | PKD, 1908.09355 (its code)           | skip, last | cls       | l2        | mean   |       |
    | TinyBERT, 1909.10351 (its code)      | uniform    | all       | none      | sum    | count |
    | MobileBERT, 2004.02984               | explicit   | all       | layernorm | mean   | out   |
    | DistilBERT, 1910.01108: last, cosine | explicit   | all       | l2        | mean   | out   |

    For rows of width H, the cosine loss 1 - cos of DistilBERT is H / 2 times this loss under l2.
    TinyBERT lets pads count; a cache holds none, so `pads = "count"` divides by the number of
    padded positions while pads themselves add nothing.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. PKD takes 10 to 1000.
        layer_map: "skip", "last", "first", "uniform", or pairs of a student and a teacher layer
            such as "1:2,2:4".
        positions: "cls", "mean", "all", "masked", or "cache": what the cache holds.
        normalize: of each row, on both sides: "none", "l2" or "layernorm".
        projection: "linear" learns a map from the student's width to the teacher's, "none" learns
            none, "auto" learns one where the widths differ. It is thrown away after training.
        shared_projection: one map for all layers, as TinyBERT, rather than one for each.
        layers: "mean" or "sum" over the mapped layers.
        pads: with positions=all, "out" is the mean over tokens, "count" over padded positions.
    """

    kind: ClassVar[str] = "hidden"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    layer_map: LayerMap = "uniform"
    positions: str = "cache"
    normalize: str = "none"
    projection: str = "auto"
    shared_projection: bool = False
    layers: str = "mean"
    pads: str = "out"

    def __post_init__(self) -> None:
        check_number("weight of a hidden loss", self.weight)
        if isinstance(self.layer_map, str) and ":" not in self.layer_map:
            one_of("layer map", self.layer_map, LAYER_MAPS)
        else:
            explicit_pairs(self.layer_map)
        for name, options in (
            ("positions", ("cache", *POSITIONS)),
            ("normalize", NORMALIZE),
            ("projection", PROJECTIONS),
            ("layers", SUMS),
            ("pads", PADS),
        ):
            one_of(f"{name} of hidden", getattr(self, name), options)
        if self.pads == "count" and self.positions != "all":
            raise ConfigError(f"pads=count is for positions=all; got positions={self.positions}")

    def needs(self, name: str, facts: CacheFacts, student: TeacherShape) -> Needs:
        """The mapped layers at the wanted positions, and a projection where widths differ."""
        signal = facts.signals.get("hidden")
        if not isinstance(signal, Hidden):
            raise ConfigError(
                f"losses.{name} needs hidden states; the cache holds {facts.held()}: build one "
                f"with --signal hidden:layers=...,positions={self._wanted('cls')}"
            )
        pairs = layer_pairs(self.layer_map, student.layers, facts.shape.layers)
        self._check_layers(name, pairs, signal)
        positions = self._wanted(signal.positions)
        if positions not in _served(signal):
            raise ConfigError(
                f"losses.{name} needs hidden states at positions={positions}; the cache holds "
                f"{_held(signal)}: set losses.{name}.positions=cache, or build a "
                f"cache with positions={positions}"
            )
        return Needs(
            pairs=pairs,
            positions=positions,
            stored=signal.positions,
            projections=self._projections(name, pairs, student.hidden, facts.shape.hidden),
        )

    def _wanted(self, stored: str) -> str:
        return stored if self.positions == "cache" else self.positions

    def _check_layers(self, name: str, pairs: Pairs, signal: Hidden) -> None:
        wanted = sorted({teacher for _, teacher in pairs})
        lacking = [layer for layer in wanted if layer not in signal.layers]
        if lacking:
            raise ConfigError(
                f"losses.{name}: layer map {self.layer_map!r} needs teacher layers "
                f"{layers_text(wanted)}; the cache holds layers {layers_text(signal.layers)} "
                f"(lacking {layers_text(lacking)}): set losses.{name}.layer_map to pairs such as "
                f"'1:{signal.layers[0]}', or build a cache with layers={layers_text(wanted)}"
            )

    def _projections(self, name: str, pairs: Pairs, student: int, teacher: int) -> dict[int, str]:
        if self.projection == "none" and student != teacher:
            raise ConfigError(
                f"losses.{name}: the student's hidden width is {student}, the cached teacher's "
                f"{teacher}; set losses.{name}.projection=linear to learn a map between them"
            )
        if self.projection == "none" or (self.projection == "auto" and student == teacher):
            return {}
        return {layer: name if self.shared_projection else f"{name}_{layer}" for layer, _ in pairs}

    def rows(self, batch: Batch, needs: Needs) -> float:
        """Rows compared in a layer; with pads=count, the padded positions they stand for."""
        if self.pads == "count":
            return batch["attention_mask"].numel() * batch.rows("hidden") / batch.tokens
        if needs.positions == needs.stored:
            return batch.rows("hidden")
        return len(batch["docs" if needs.positions == "cls" else "masked"])

    def value(self, step: Step, needs: Needs) -> torch.Tensor:
        """Mean or sum over the mapped layers of each layer's mean squared error."""
        outputs, index = step.beside["hidden"], _index(step.student, needs)
        total = torch.zeros((), device=outputs.mask.device)
        for layer, teacher_layer in needs.pairs:
            rows = outputs.rows(Tap("hidden", layer), needs.positions)
            if layer in needs.projections:
                rows = step.project(needs.projections[layer], rows)
            total = total + hidden_loss(
                rows,
                _pick(step.hidden[teacher_layer], index),
                normalize=self.normalize,
                divisor=_padded(step.student, outputs) if self.pads == "count" else None,
            )
        return total / len(needs.pairs) if self.layers == "mean" else total


def hidden_loss(
    student: torch.Tensor,
    teacher: LayerRows,
    *,
    normalize: str = "none",
    divisor: float | None = None,
) -> torch.Tensor:
    """Mean over H, and sum over rows / `divisor` (None: N), of the squared differences.

    `student` is [N, H]; `teacher` holds N rows of the same width. Zero if N is 0.
    """
    if not len(student):
        return exact(student).sum()
    weight = None
    if divisor is not None:
        weight = exact(student).new_full((len(student),), 1 / divisor)
    return hidden_mse(
        student,
        teacher.codes,
        teacher.scale,
        normalize=cast(Literal["none", "l2", "layernorm"], normalize),
        weight=weight,
    )


def _served(signal: Hidden) -> tuple[str, ...]:
    """Positions that all have a row."""
    if signal.fraction < 1:
        return (signal.positions,)
    return SERVES.get(signal.positions, (signal.positions,))


def _held(signal: Hidden) -> str:
    part = f",fraction={signal.fraction:g}" if signal.fraction < 1 else ""
    return f"positions={signal.positions}{part}"


def _padded(student: Activations, kept: Activations) -> float:
    """Positions, padding included, that the kept rows stand for: all, or the like share of them."""
    if kept is student:
        return student.mask.numel()
    return student.mask.numel() * float(kept.mask.sum() / student.mask.sum())


def _index(outputs: Activations, needs: Needs) -> torch.Tensor | None:
    """Which stored rows `positions` are; None for all of them, in order."""
    if needs.positions == needs.stored:
        return None
    token = outputs.mask.flatten().cumsum(0) - 1
    if needs.positions == "cls":
        return token[:: outputs.mask.shape[1]]
    assert outputs.masked is not None
    return token[outputs.masked]


def _pick(rows: LayerRows, index: torch.Tensor | None) -> LayerRows:
    if index is None:
        return rows
    scale = None if rows.scale is None else rows.scale[index]
    return LayerRows(codes=rows.codes[index], scale=scale)
