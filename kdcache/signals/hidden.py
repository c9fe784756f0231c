"""Hidden states of chosen layers, at chosen positions, as int8 codes with scales or floats."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.manifest import Json
from kdcache.signals.base import (
    POSITIONS,
    Arrays,
    ArraySpec,
    Outputs,
    Stats,
    TeacherShape,
    check_positions,
    select,
)
from kdcache.tasks import Task
from kdcache_kernels import dequantize_rows, quantize_rows

FLOATS = {
    "bf16": (torch.bfloat16, "uint16"),
    "fp16": (torch.float16, "float16"),
    "fp32": (torch.float32, "float32"),
}


@dataclass(frozen=True, kw_only=True)
class LayerRows:
    """Stored rows of one layer: [N, H] codes, with int8 codes' scale [N] or [N, G]."""

    codes: torch.Tensor
    scale: torch.Tensor | None = None

    def dense(self) -> torch.Tensor:
        """Decoded values, [N, H] float32."""
        if self.scale is None:
            return self.codes.float()
        return dequantize_rows(self.codes, self.scale)


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Hidden states of `layers` (0 is the embedding output) at `positions`.

    `dtype` is int8 (a scale per row, or per `group` values), bf16, fp16 or fp32.
    """

    name: ClassVar[str] = "hidden"
    codec: ClassVar[str] = "hidden"
    layers: tuple[int, ...]
    positions: str = "cls"
    dtype: str = "int8"
    group: int | None = None

    def __post_init__(self) -> None:
        one_of("positions of hidden", self.positions, POSITIONS)
        one_of("dtype of hidden", self.dtype, ["int8", *FLOATS])
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ConfigError(
                f"layers of hidden must be distinct and 0 or more, as in layers=2-4-6; "
                f"got {'-'.join(map(str, self.layers)) or 'none'}"
            )
        if self.group is not None and (self.dtype != "int8" or self.group < 1):
            raise ConfigError(f"group={self.group} needs dtype=int8 and a group of 1 or more")

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        return {**asdict(self), "codec": self.codec, "layers": list(self.layers)}

    def check(self, task: Task, shape: TeacherShape) -> None:
        """Raise ConfigError for a layer the teacher lacks or a group that does not divide it."""
        check_positions(self.positions, task)
        if max(self.layers) > shape.layers:
            raise ConfigError(
                f"hidden: layer {max(self.layers)} is out of range; the teacher has layers "
                f"0 (embedding output) to {shape.layers}"
            )
        if self.group and shape.hidden % self.group:
            raise ConfigError(
                f"hidden: group={self.group} does not divide the hidden width {shape.hidden}"
            )

    def arrays(self, task: Task, shape: TeacherShape) -> list[ArraySpec]:
        """`hidden/L{i}/codes` [rows, hidden] and, for int8, `hidden/L{i}/scale`."""
        space = check_positions(self.positions, task)
        groups = (shape.hidden // self.group,) if self.group else ()
        dtype = "int8" if self.dtype == "int8" else FLOATS[self.dtype][1]
        attributes = {"bitcast": "bfloat16"} if self.dtype == "bf16" else {}
        specs = []
        for layer in self.layers:
            codes = ArraySpec(
                name=f"hidden/L{layer}/codes",
                space=space,
                row_shape=(shape.hidden,),
                dtype=dtype,
                attributes=attributes,
                chunk_rows=1024,
            )
            specs.append(codes)
            if self.dtype == "int8":
                name = f"hidden/L{layer}/scale"
                specs.append(ArraySpec(name=name, space=space, row_shape=groups, dtype="float16"))
        return specs

    def encode(self, outputs: Outputs) -> Arrays:
        """Codes of every chosen layer, on the teacher's device."""
        arrays: Arrays = {}
        for layer in self.layers:
            rows = select(outputs.hidden[layer], self.positions, outputs.mask, outputs.masked)
            codes, scale = self._encode_rows(rows, layer)
            arrays[f"hidden/L{layer}/codes"] = codes
            if scale is not None:
                arrays[f"hidden/L{layer}/scale"] = scale
        return arrays

    def _encode_rows(
        self, rows: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.dtype == "int8":
            try:
                return quantize_rows(rows, self.group)
            except ValueError as error:
                raise ModelError(f"hidden layer {layer} does not fit int8: {error}") from error
        kept = rows.to(FLOATS[self.dtype][0])
        if not torch.isfinite(kept).all():
            raise ModelError(
                f"hidden layer {layer} does not fit {self.dtype}; store it as bf16 or fp32"
            )
        return (kept.view(torch.uint16) if self.dtype == "bf16" else kept), None

    def decode(self, raw: Arrays, layer: int) -> LayerRows:
        """Stored rows of one layer as `hidden_mse` takes them."""
        codes = raw[f"hidden/L{layer}/codes"]
        if self.dtype == "bf16":
            codes = codes.view(torch.bfloat16)
        return LayerRows(codes=codes, scale=raw.get(f"hidden/L{layer}/scale"))

    def measure(self, outputs: Outputs, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """Squared error and squared norm of each layer over the sampled rows."""
        stats: Stats = {"rows": float(len(rows))}
        for layer in self.layers:
            exact = select(outputs.hidden[layer], self.positions, outputs.mask, outputs.masked)
            exact = exact[rows].double()
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
