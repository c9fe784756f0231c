"""Vectors that a model computes, of layers, tokens or documents. FEATURES is the table of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Self

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.signals.activations import Activations
from kdcache.signals.base import (
    Arrays,
    ArraySpec,
    ArtifactSources,
    Columns,
    Stats,
    check_fraction,
    check_positions,
    row_space,
)
from kdcache.signals.codecs.linear_file import LinearFile, most_bytes, save
from kdcache.signals.codecs.quantised import LayerRows, RowCodec
from kdcache.signals.positions import POSITIONS, positions_of, stored_positions
from kdcache.signals.taps import TAP_KINDS, ModelSizes, Tap
from kdcache.tasks import RowSpace, Task

SILENT = (("compress", "none"), ("fraction", 1.0))
"""Settings that the manifest does not mention."""
CLASSIFIER = "pooled/classifier.safetensors"
"""Where a cache keeps the teacher's classifier, under `files/`."""


@dataclass(frozen=True, kw_only=True)
class DocumentVectors:
    """A vector for each document: one tap, stored as the row codec says.

    Bits a value and relative error, as measured on the hidden states of all-MiniLM-L6-v2:

    | `dtype`                     | bits        | error      |
    |-----------------------------|-------------|------------|
    | int8, a scale per row       | 8 + 16 / H  | 1.0-1.7%   |
    | int8, `group` of 64         | 8.25        | 0.7-1.0%   |
    | int4, `group` of 16 (or 32) | 4.5 (4.25)  | 7-8% (9%)  |
    | fp8 (e4m3, to 448)          | 8           | 2.7%       |
    | bf16, fp16, fp32            | 16, 16, 32  | 0.2%, 0.02%, none |

    `compress=zstd` shrinks the codes of trained networks further and reads slower; the size is an
    estimate then.
    """

    kind: ClassVar[str]
    codec: ClassVar[str]
    tap: ClassVar[str]
    """Name of the tap that is stored."""
    example: ClassVar[str]
    measured: ClassVar[str] = "hidden"
    """The part of the table of measured errors that tells of its like."""
    dtype: str = "int8"
    group: int | None = None
    compress: str = "none"

    def __post_init__(self) -> None:
        _ = self.rows  # which checks itself

    @property
    def rows(self) -> RowCodec:
        """How every row is stored."""
        return RowCodec(what=self.kind, dtype=self.dtype, group=self.group, compress=self.compress)

    def to_json(self) -> Json:
        """The configuration as JSON values, the codec last."""
        known = ("layers", "positions", "dtype", "group", "compress", "fraction")
        there = {entry.name for entry in fields(self)}
        values = {name: getattr(self, name) for name in known if name in there}
        chosen = {name: value for name, value in values.items() if (name, value) not in SILENT}
        if "layers" in chosen:
            chosen["layers"] = list(chosen["layers"])
        if "positions" in chosen:
            chosen["positions"] = stored_positions(chosen["positions"])
        return chosen | {"codec": self.codec}

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Raise ConfigError for what the teacher does not have at such rows."""
        self.space(task)
        self.rows.check(self.width(shape))

    def width(self, shape: ModelSizes) -> int:
        """Values of a row."""
        return shape.width(self.tap)

    def space(self, task: Task) -> RowSpace:
        """Where its rows lie; ConfigError if the task has none there."""
        if task.rows != "document":
            raise ConfigError(f"{self.kind} is what a classifier reads; the task is {task}")
        return "document"

    def taps(self) -> tuple[Tap, ...]:
        """All that is stored."""
        return (Tap(self.tap),)

    def gives(self) -> tuple[Tap, ...]:
        """All that is stored."""
        return self.taps()

    def values(self, activations: Activations) -> Mapping[Tap, torch.Tensor]:
        """A vector per row, [rows, width], of every tap; heads lie side by side."""
        return {tap: activations.rows(tap) for tap in self.taps()}

    def arrays(self, task: Task, shape: ModelSizes) -> list[ArraySpec]:
        """`codes` and, for integers, `scale`; of layer 2 `L2/codes` and `L2/scale`."""
        space, width = self.space(task), self.width(shape)
        axis = "hidden" if TAP_KINDS[self.tap].width == ("hidden",) else "width"
        return [
            spec
            for tap in self.taps()
            for spec in self.rows.arrays(space, width, prefix=prefix(tap), taps=(tap,), axis=axis)
        ]

    def encode(self, activations: Activations) -> Arrays:
        """Codes of every tap, on the teacher's device."""
        arrays: Arrays = {}
        for tap, rows in self.values(activations).items():
            arrays |= self.rows.encode(rows, str(tap), prefix(tap))
        return arrays

    def decode(self, arrays: Arrays, tap: Tap, sizes: ModelSizes | None = None) -> LayerRows:
        """Stored rows of one tap as `hidden_mse` takes them."""
        return self.rows.decode(arrays, prefix(tap))

    def columns(self, arrays: Arrays, sizes: ModelSizes | None = None) -> Columns:
        """Decoded rows, float32 [rows, width]: `values`, or of layer 2 `L2`."""
        return {
            prefix(tap).rstrip("/") or "values": self.decode(arrays, tap).dense()
            for tap in self.taps()
        }

    def measure(self, activations: Activations, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """Squared error and squared norm of each tap over the sampled rows."""
        stats: Stats = {"rows": float(len(rows))}
        for tap, values in self.values(activations).items():
            exact, of = values[rows].double(), prefix(tap)
            chosen = {name: a[rows] for name, a in encoded.items() if name.startswith(of)}
            error, of = self.decode(chosen, tap).dense().double() - exact, of.replace("/", "_")
            stats[f"{of}error"] = float(error.square().sum())
            stats[f"{of}norm"] = float(exact.square().sum())
        return stats

    def summarise(self, stats: Stats) -> Json:
        """Relative error ||decoded - teacher|| / ||teacher||; by layer where it has some."""
        relative = {
            of.rstrip("_"): (stats[f"{of}error"] / max(stats[f"{of}norm"], 1e-300)) ** 0.5
            for of in (prefix(tap).replace("/", "_") for tap in self.taps())
        }
        return {"rows": int(stats["rows"]), "relative_error": relative.get("", relative)}


@dataclass(frozen=True, kw_only=True)
class TokenVectors(DocumentVectors):
    """A vector for each token at `positions`: cls, the first; mean, over all; all; or selected,
    those that the task selects, which manifests call masked.

    `fraction` keeps that share of the positions, spread over every document (docs/decisions/0014).
    """

    positions: str = "cls"
    fraction: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", positions_of(self.positions))
        super().__post_init__()
        one_of(f"positions of {self.kind}", self.positions, POSITIONS)
        check_fraction(self.kind, self.fraction)
        row_space(self.kind, POSITIONS[self.positions], self.fraction)

    def space(self, task: Task) -> RowSpace:
        """The rows of the positions; ConfigError if the task has none there."""
        return row_space(self.kind, check_positions(self.positions, task), self.fraction)

    def values(self, activations: Activations) -> Mapping[Tap, torch.Tensor]:
        """A vector per row, [rows, width], of every tap; heads lie side by side."""
        return {tap: activations.rows(tap, self.positions) for tap in self.taps()}


@dataclass(frozen=True, kw_only=True)
class OfLayers(DocumentVectors):
    """Vectors of each of `layers`."""

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        first = self.first
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < first:
            raise ConfigError(
                f"layers of {self.kind} must be distinct and {first} or more, as in layers=2-4-6; "
                f"got {'-'.join(map(str, self.layers)) or 'none'}"
            )

    @property
    def first(self) -> int:
        """Number of the first layer that has such vectors."""
        return TAP_KINDS[self.tap].first or 0

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Raise ConfigError for a layer the teacher lacks or a group that does not divide it."""
        super().check(task, shape)
        if max(self.layers) > shape.layers:
            start = "0 (embedding output)" if self.first == 0 else self.first
            raise ConfigError(
                f"{self.kind}: layer {max(self.layers)} is out of range; the teacher has layers "
                f"{start} to {shape.layers}"
            )

    def taps(self) -> tuple[Tap, ...]:
        """Every chosen layer."""
        return tuple(Tap(self.tap, layer) for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class LayerVectors(OfLayers, TokenVectors):
    """A vector for each token at `positions`, of each of `layers`."""


def prefix(tap: Tap) -> str:
    """What the names of a tap's arrays begin with."""
    return "" if tap.layer is None else f"L{tap.layer}/"


@dataclass(frozen=True, kw_only=True)
class ClassifierInputs(DocumentVectors):
    """What a classifier reads of each document, and the classifier in a file, if it is linear.

    The classifier serves a student that takes it over, as in the loss `simkd`. A teacher whose
    classifier has layers of its own (RoBERTa's, ELECTRA's) has no such file.
    """

    file: LinearFile | None = field(default=None, compare=False, repr=False)

    def artifacts(
        self, task: Task, shape: ModelSizes, sources: ArtifactSources
    ) -> dict[str, bytes]:
        """The classifier, where it is one linear layer."""
        found = sources.classifier()
        return {} if found is None else {CLASSIFIER: save({"": found})}

    def artifact_bytes(self, shape: ModelSizes) -> dict[str, int]:
        """The most it takes; half where the teacher is a 16-bit one."""
        return {CLASSIFIER: most_bytes({"": (shape.outputs, shape.width(self.tap))})}

    def with_artifacts(self, shape: ModelSizes, read: Callable[[str], bytes]) -> Self:
        """This signal with the classifier, read once it is needed."""
        sizes = {"": (shape.outputs, shape.width(self.tap))}
        return replace(self, file=LinearFile(read, CLASSIFIER, sizes))


def vectors(tap: str) -> type[DocumentVectors]:
    """The signal that stores a tap: a vector a document or a token, of layers if it has some.

    Of documents it is what their classifier reads.
    """
    known = TAP_KINDS[tap]
    kind: type[DocumentVectors] = ClassifierInputs if known.per == "document" else TokenVectors
    kind = kind if known.first is None else LayerVectors
    example = tap if known.first is None else f"{tap}:layers=2-4-6"
    own = {"kind": tap, "codec": tap, "tap": tap, "example": example, "__doc__": kind.__doc__}
    made: type[DocumentVectors] = type(kind.__name__, (kind,), {**own, "__module__": __name__})
    return made


FEATURES: dict[str, type[DocumentVectors]] = {
    tap: vectors(tap) for tap in ("hidden", "query", "key", "value", "pooled", "embeddings")
}
"""Every vector signal, by its name, which is that of its tap."""
