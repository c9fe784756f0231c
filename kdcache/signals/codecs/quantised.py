"""Rows of vectors as codes: 4 or 8 bits with scales, or floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.manifest import Json
from kdcache.signals.base import Arrays, ArraySpec
from kdcache.signals.codecs import int4
from kdcache.signals.taps import Tap
from kdcache.tasks import RowSpace
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

    @property
    def layout(self) -> tuple[torch.dtype, tuple[int, ...] | None]:
        """What an op takes several layers by at once: their dtype, and the shape of their scale."""
        return self.codes.dtype, None if self.scale is None else tuple(self.scale.shape)

    def dense(self) -> torch.Tensor:
        """Decoded values, [N, H] float32; of float64 codes, which no cache holds, themselves."""
        if self.codes.dtype == torch.float64:
            return self.codes
        if self.scale is None:
            return self.codes.float()
        return dequantize_rows(self.codes, self.scale)


@dataclass(frozen=True, kw_only=True)
class RowCodec:
    """How rows [N, H] are stored: their `dtype`, the columns that share a scale, the compression.

    Raises ConfigError for what does not go together; `what` names the rows in messages.
    """

    what: str
    dtype: str
    group: int | None = None
    compress: str = "none"

    def __post_init__(self) -> None:
        one_of(f"dtype of {self.what}", self.dtype, ["int8", "int4", *FLOATS])
        one_of(f"compress of {self.what}", self.compress, COMPRESS)
        if self.group is not None and (self.dtype not in ("int8", "int4") or self.group < 1):
            raise ConfigError(
                f"group={self.group} needs dtype=int8 or int4 and a group of 1 or more"
            )
        if self.dtype == "int4" and (self.group or INT4_GROUP) % 2:
            raise ConfigError(f"int4 packs values in pairs: group={self.group} must be even")

    @property
    def columns(self) -> int | None:
        """Columns that share a scale; None for the whole row."""
        return self.group or (INT4_GROUP if self.dtype == "int4" else None)

    def check(self, width: int) -> None:
        """Raise ConfigError if groups do not divide rows of that width."""
        if self.columns and width % self.columns:
            raise ConfigError(
                f"{self.what}: group={self.columns} does not divide the hidden width {width}"
            )

    def arrays(
        self,
        space: RowSpace,
        width: int,
        *,
        prefix: str = "",
        taps: tuple[Tap, ...] = (),
        axis: str = "hidden",
    ) -> list[ArraySpec]:
        """`codes` and, for integers, `scale`, behind a `prefix` such as L2/.

        `axis` is what a row's values are called.
        """
        dtype, row, attributes = self._codes(width)
        zstd = self.compress == "zstd"
        size = np.dtype(dtype).itemsize * row
        least, most = ZSTD_SHARE.get(self.dtype, (0.8, 1.0))
        codes = ArraySpec(
            name=f"{prefix}codes",
            space=space,
            row_shape=(row,),
            axes=(axis if row == width else "pair",),
            taps=taps,
            dtype=dtype,
            attributes=attributes,
            chunk_rows=1024,
            packing="zstd" if zstd else "",
            expected=(least * size, most * size) if zstd else None,
        )
        if self.dtype not in ("int8", "int4"):
            return [codes]
        scale = ArraySpec(
            name=f"{prefix}scale",
            space=space,
            row_shape=(width // self.columns,) if self.columns else (),
            axes=("group",) if self.columns else (),
            dtype="float16" if self.dtype == "int8" else "uint8",
            taps=taps,
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

    def encode(self, rows: torch.Tensor, what: str, prefix: str = "") -> Arrays:
        """Arrays of rows; ModelError, naming `what`, where they do not fit."""
        codes, scale = self._encode(rows, what)
        return {f"{prefix}codes": codes} | ({} if scale is None else {f"{prefix}scale": scale})

    def _encode(self, rows: torch.Tensor, what: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        try:
            if self.dtype == "int8":
                return quantize_rows(rows, self.group)
            if self.dtype == "int4":
                return int4.pack(rows, self.group or INT4_GROUP)
        except ValueError as error:
            raise ModelError(f"{what} does not fit {self.dtype}: {error}") from error
        stored = rows.to(FLOATS[self.dtype][0])
        if not torch.isfinite(stored.float()).all():
            raise ModelError(f"{what} does not fit {self.dtype}; store it as bf16 or fp32")
        return (stored.view(BITCAST[self.dtype][1]) if self.dtype in BITCAST else stored), None

    def decode(self, arrays: Arrays, prefix: str = "") -> LayerRows:
        """Stored rows as ops take them."""
        codes, scale = arrays[f"{prefix}codes"], arrays.get(f"{prefix}scale")
        if self.dtype == "int4":
            assert scale is not None
            codes, scale = int4.unpack(codes, scale)
        elif self.dtype in BITCAST:
            codes = codes.view(FLOATS[self.dtype][0])
        if self.dtype == "fp8":
            codes = codes.to(torch.bfloat16)  # which holds every e4m3 value
        return LayerRows(codes=codes, scale=scale)
