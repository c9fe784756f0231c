"""Hidden states of chosen layers, at chosen positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.signals.base import (
    Arrays,
    ArraySpec,
    Stats,
    TeacherShape,
    check_fraction,
    check_positions,
    row_space,
    settings,
)
from kdcache.signals.codecs.quantised import LayerRows, RowCodec
from kdcache.signals.taps import POSITIONS, Activations, Tap
from kdcache.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Hidden states of `layers` (0 is the embedding output) at `positions`.

    `fraction` keeps that share of the positions, spread over every document (docs/decisions/0014).
    Bits a value and relative error, as measured on the layers of all-MiniLM-L6-v2:

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

    name: ClassVar[str] = "hidden"
    codec: ClassVar[str] = "hidden"
    example: ClassVar[str] = "hidden:layers=2-4-6"
    layers: tuple[int, ...]
    positions: str = "cls"
    dtype: str = "int8"
    group: int | None = None
    compress: str = "none"
    fraction: float = 1.0

    def __post_init__(self) -> None:
        one_of("positions of hidden", self.positions, POSITIONS)
        _ = self.rows  # which checks itself
        check_fraction("hidden", self.fraction)
        row_space("hidden", POSITIONS[self.positions], self.fraction)
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ConfigError(
                f"layers of hidden must be distinct and 0 or more, as in layers=2-4-6; "
                f"got {'-'.join(map(str, self.layers)) or 'none'}"
            )

    @property
    def rows(self) -> RowCodec:
        """How rows of every layer are stored."""
        return RowCodec(what="hidden", dtype=self.dtype, group=self.group, compress=self.compress)

    def to_json(self) -> Json:
        """The configuration as JSON values; what is not compressed says nothing of it."""
        record = settings(asdict(self)) | {"codec": self.codec, "layers": list(self.layers)}
        if self.compress == "none":
            del record["compress"]
        return record

    def check(self, task: Task, shape: TeacherShape) -> None:
        """Raise ConfigError for a layer the teacher lacks or a group that does not divide it."""
        check_positions(self.positions, task)
        if max(self.layers) > shape.layers:
            raise ConfigError(
                f"hidden: layer {max(self.layers)} is out of range; the teacher has layers "
                f"0 (embedding output) to {shape.layers}"
            )
        self.rows.check(shape.hidden)

    def arrays(self, task: Task, shape: TeacherShape) -> list[ArraySpec]:
        """`hidden/L{i}/codes` [rows, hidden] and, for integers, `hidden/L{i}/scale`."""
        space = row_space("hidden", check_positions(self.positions, task), self.fraction)
        return [
            spec
            for layer in self.layers
            for spec in self.rows.arrays(f"hidden/L{layer}", space, shape.hidden)
        ]

    def taps(self) -> tuple[Tap, ...]:
        """Every chosen layer."""
        return tuple(Tap("hidden", layer) for layer in self.layers)

    def values(self, said: Activations) -> Mapping[Tap, torch.Tensor]:
        """The states of every chosen layer at `positions`, [rows, hidden] each."""
        return {tap: said.rows(tap, self.positions) for tap in self.taps()}

    def encode(self, said: Activations) -> Arrays:
        """Codes of every chosen layer, on the teacher's device."""
        arrays: Arrays = {}
        for tap, rows in self.values(said).items():
            codes, scale = self.rows.encode(rows, str(tap))
            arrays[f"hidden/L{tap.layer}/codes"] = codes
            if scale is not None:
                arrays[f"hidden/L{tap.layer}/scale"] = scale
        return arrays

    def decode(self, raw: Arrays, layer: int) -> LayerRows:
        """Stored rows of one layer as `hidden_mse` takes them."""
        prefix = f"hidden/L{layer}"
        return self.rows.decode(raw[f"{prefix}/codes"], raw.get(f"{prefix}/scale"))

    def measure(self, said: Activations, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """Squared error and squared norm of each layer over the sampled rows."""
        stats: Stats = {"rows": float(len(rows))}
        for tap, values in self.values(said).items():
            assert tap.layer is not None
            layer, exact = tap.layer, values[rows].double()
            kept = {name: a[rows] for name, a in encoded.items() if f"/L{layer}/" in name}
            error = self.decode(kept, layer).dense().double() - exact
            stats[f"L{layer}_error"] = float(error.square().sum())
            stats[f"L{layer}_norm"] = float(exact.square().sum())
        return stats

    def summarise(self, stats: Stats) -> Json:
        """Relative error ||decoded - teacher|| / ||teacher|| of each layer."""
        relative = {
            f"L{layer}": (stats[f"L{layer}_error"] / max(stats[f"L{layer}_norm"], 1e-300)) ** 0.5
            for layer in self.layers
        }
        return {"rows": int(stats["rows"]), "relative_error": relative}
