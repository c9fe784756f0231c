"""Hidden states of chosen layers, at chosen positions: codes of 4 or 8 bits, or floats."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.manifest import Json
from kdcache.signals import int4
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
from kdcache.tasks import Space, Task
from kdcache_kernels import dequantize_rows, quantize_rows

FLOATS = {
    "fp8": (torch.float8_e4m3fn, "uint8"),
    "bf16": (torch.bfloat16, "uint16"),
    "fp16": (torch.float16, "float16"),
    "fp32": (torch.float32, "float32"),
}
BITCAST = {"fp8": ("float8_e4m3fn", torch.uint8), "bf16": ("bfloat16", torch.uint16)}
"""Floats that Zarr has no type for: the name of the type, and the integers they are stored as."""
INT4_GROUP = 16
COMPRESS = ("none", "zstd")
ZSTD_SHARE = {"int8": (0.5, 1.0), "int4": (0.9, 1.0), "fp8": (0.7, 1.0), "bf16": (0.7, 1.0)}
"""Least and most that zstd leaves of the codes."""


@dataclass(frozen=True, kw_only=True)
class LayerRows:
    """Rows of one layer as `hidden_mse` takes them: [N, H] codes, with integers' scale.

    The scale is [N], or [N, G] for G groups of columns.
    """

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
    layers: tuple[int, ...]
    positions: str = "cls"
    dtype: str = "int8"
    group: int | None = None
    compress: str = "none"

    def __post_init__(self) -> None:
        one_of("positions of hidden", self.positions, POSITIONS)
        one_of("dtype of hidden", self.dtype, ["int8", "int4", *FLOATS])
        one_of("compress of hidden", self.compress, COMPRESS)
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ConfigError(
                f"layers of hidden must be distinct and 0 or more, as in layers=2-4-6; "
                f"got {'-'.join(map(str, self.layers)) or 'none'}"
            )
        if self.group is not None and (self.dtype not in ("int8", "int4") or self.group < 1):
            raise ConfigError(
                f"group={self.group} needs dtype=int8 or int4 and a group of 1 or more"
            )
        if self.dtype == "int4" and (self.group or INT4_GROUP) % 2:
            raise ConfigError(f"int4 packs values in pairs: group={self.group} must be even")

    def to_json(self) -> Json:
        """The configuration as JSON values; what is not compressed says nothing of it."""
        record = {**asdict(self), "codec": self.codec, "layers": list(self.layers)}
        if self.compress == "none":
            del record["compress"]
        return record

    @property
    def _group(self) -> int | None:
        """Columns that share a scale; None for the whole row."""
        return self.group or (INT4_GROUP if self.dtype == "int4" else None)

    def check(self, task: Task, shape: TeacherShape) -> None:
        """Raise ConfigError for a layer the teacher lacks or a group that does not divide it."""
        check_positions(self.positions, task)
        if max(self.layers) > shape.layers:
            raise ConfigError(
                f"hidden: layer {max(self.layers)} is out of range; the teacher has layers "
                f"0 (embedding output) to {shape.layers}"
            )
        if self._group and shape.hidden % self._group:
            raise ConfigError(
                f"hidden: group={self._group} does not divide the hidden width {shape.hidden}"
            )

    def arrays(self, task: Task, shape: TeacherShape) -> list[ArraySpec]:
        """`hidden/L{i}/codes` [rows, hidden] and, for integers, `hidden/L{i}/scale`."""
        space = check_positions(self.positions, task)
        return [
            spec for layer in self.layers for spec in self._layer_arrays(layer, space, shape.hidden)
        ]

    def _layer_arrays(self, layer: int, space: Space, width: int) -> list[ArraySpec]:
        dtype, row, attributes = self._codes(width)
        zstd = self.compress == "zstd"
        size = np.dtype(dtype).itemsize * row
        least, most = ZSTD_SHARE.get(self.dtype, (0.8, 1.0))
        codes = ArraySpec(
            name=f"hidden/L{layer}/codes",
            space=space,
            row_shape=(row,),
            dtype=dtype,
            attributes=attributes,
            chunk_rows=1024,
            packing="zstd" if zstd else "",
            expected=(least * size, most * size) if zstd else None,
        )
        if self.dtype not in ("int8", "int4"):
            return [codes]
        scale = ArraySpec(
            name=f"hidden/L{layer}/scale",
            space=space,
            row_shape=(width // self._group,) if self._group else (),
            dtype="float16" if self.dtype == "int8" else "uint8",
            attributes={} if self.dtype == "int8" else int4.SCALE_ATTRIBUTES,
        )
        return [codes, scale]

    def _codes(self, width: int) -> tuple[str, int, Json]:
        """Type, values a row and attributes of the array of codes."""
        if self.dtype == "int8":
            return "int8", width, {}
        if self.dtype == "int4":
            return "uint8", width // 2, int4.CODE_ATTRIBUTES
        kind = FLOATS[self.dtype][1]
        return kind, width, {"bitcast": BITCAST[self.dtype][0]} if self.dtype in BITCAST else {}

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
        try:
            if self.dtype == "int8":
                return quantize_rows(rows, self.group)
            if self.dtype == "int4":
                return int4.pack(rows, self.group or INT4_GROUP)
        except ValueError as error:
            raise ModelError(f"hidden layer {layer} does not fit {self.dtype}: {error}") from error
        kept = rows.to(FLOATS[self.dtype][0])
        if not torch.isfinite(kept.float()).all():
            raise ModelError(
                f"hidden layer {layer} does not fit {self.dtype}; store it as bf16 or fp32"
            )
        return (kept.view(BITCAST[self.dtype][1]) if self.dtype in BITCAST else kept), None

    def decode(self, raw: Arrays, layer: int) -> LayerRows:
        """Stored rows of one layer as `hidden_mse` takes them."""
        codes, scale = raw[f"hidden/L{layer}/codes"], raw.get(f"hidden/L{layer}/scale")
        if self.dtype == "int4":
            assert scale is not None
            codes, scale = int4.unpack(codes, scale)
        elif self.dtype in BITCAST:
            codes = codes.view(FLOATS[self.dtype][0])
        if self.dtype == "fp8":
            codes = codes.to(torch.bfloat16)  # which holds every e4m3 value
        return LayerRows(codes=codes, scale=scale)

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
