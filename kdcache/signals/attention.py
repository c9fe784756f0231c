"""Queries, keys and values that are made of hidden states when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch.nn import functional

from kdcache.signals.base import Arrays, ArraySpec, ArtifactSources
from kdcache.signals.codecs.linear_file import LinearFile, most_bytes, save
from kdcache.signals.codecs.quantised import LayerRows
from kdcache.signals.features import OfLayers, prefix
from kdcache.signals.taps import ModelSizes, Tap
from kdcache.tasks import RowSpace, Task

FILE = "attention/L{layer}.safetensors"
"""Where a cache keeps the projections of a layer, under `files/`."""
PROJECTED = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class AttentionInputs(OfLayers):
    """What the attention of `layers` reads: queries, keys and values are made of it.

    In BERT, RoBERTa, XLM-R, ELECTRA and DistilBERT all three are linear maps of the hidden states
    of the layer before. Those are stored once, and the maps of a layer as a file: a third of what
    the three take, or nothing more where the hidden states are wanted too, which `hidden` losses
    read from here. A build proves the maps on its first documents and refuses other teachers.

    Scores err less with `dtype=int8,group=64` than with a scale per row (docs/decisions/0036).
    """

    kind: ClassVar[str] = "attention"
    codec: ClassVar[str] = "attention"
    tap: ClassVar[str] = "hidden"
    example: ClassVar[str] = "attention:layers=2-4"
    positions: ClassVar[str] = "all"
    files: Mapping[int, LinearFile] = field(default_factory=dict, compare=False, repr=False)

    @property
    def first(self) -> int:
        """Number of the first layer that attends."""
        return 1

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Raise ConfigError for a layer the teacher lacks, or sizes that it does not tell."""
        super().check(task, shape)
        _sizes(shape)

    def space(self, task: Task) -> RowSpace:
        """All tokens: attention is between them."""
        return "token"

    def taps(self) -> tuple[Tap, ...]:
        """The hidden states of the layer before each."""
        return tuple(Tap("hidden", layer - 1) for layer in self.layers)

    def gives(self) -> tuple[Tap, ...]:
        """Queries, keys and values of each layer, and what they are made of."""
        made = (Tap(name, layer) for layer in self.layers for name in PROJECTED)
        return (*self.taps(), *made)

    def arrays(self, task: Task, shape: ModelSizes) -> list[ArraySpec]:
        """`L1/codes` and, for integers, `L1/scale`: hidden states of layer 1 for layer 2."""
        made = {
            Tap("hidden", layer - 1): tuple(Tap(name, layer) for name in PROJECTED)
            for layer in self.layers
        }
        specs = super().arrays(task, shape)
        return [replace(spec, taps=spec.taps + made[spec.taps[0]]) for spec in specs]

    def artifacts(
        self, task: Task, shape: ModelSizes, sources: ArtifactSources
    ) -> dict[str, bytes]:
        """The projections of every layer; ModelError if they are not all there is to it."""
        return {FILE.format(layer=layer): save(sources.projections(layer)) for layer in self.layers}

    def artifact_bytes(self, shape: ModelSizes) -> dict[str, int]:
        """The most each file takes; half where the teacher is a 16-bit one."""
        return {FILE.format(layer=layer): most_bytes(_sizes(shape)) for layer in self.layers}

    def with_artifacts(self, shape: ModelSizes, read: Callable[[str], bytes]) -> AttentionInputs:
        """This signal with the projections, each file read once it is needed."""
        files = {
            layer: LinearFile(read, FILE.format(layer=layer), _sizes(shape))
            for layer in self.layers
        }
        return replace(self, files=files)

    def decode(self, arrays: Arrays, tap: Tap, sizes: ModelSizes | None = None) -> LayerRows:
        """Stored hidden states, or what a projection makes of them: float32 [tokens, width]."""
        if tap.name == self.tap:
            return super().decode(arrays, tap, sizes)
        assert tap.layer is not None
        states = self.rows.decode(arrays, prefix(Tap("hidden", tap.layer - 1))).dense()
        weight, bias = self.files[tap.layer].on(states.device, tap.name, torch.float32)
        with torch.autocast(states.device.type, enabled=False):  # of whoever decodes in a loop
            made = functional.linear(states, weight, bias)
        return LayerRows(codes=made)


def _sizes(shape: ModelSizes) -> dict[str, tuple[int, int]]:
    """[out, in] of each projection."""
    return {name: (shape.width(name), shape.hidden) for name in PROJECTED}
