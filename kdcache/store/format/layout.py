"""How an array's rows lie in shards and inner chunks: decided before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.signals import Packing

SHARD_BYTES = 64 * 2**20
ZSTD_LEVELS: dict[Packing, int] = {"zstd": 1, "columns": 13}
"""Of packed chunks: hidden states hardly gain beyond the first; ids do, up to the 13th, which
writes 150,000 rows of 50 a second."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an array's rows lie in shards and inner chunks; a part is a whole number of shards.

    Attributes:
        dims: names of the array's dimensions, where it is to be created with names.
    """

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    part_rows: int
    chunk_rows: int
    shard_rows: int
    parts: int
    packing: Packing = ""
    dims: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * math.prod(self.row_shape)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of an inner chunk before it is compressed, its crc32c left out."""
        return self.chunk_rows * self.row_bytes

    @property
    def shard_chunks(self) -> int:
        """Inner chunks of a shard."""
        return self.shard_rows // self.chunk_rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return (self.parts * self.part_rows, *self.row_shape)

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard file, exactly; a packed one would take this if it were not packed."""
        return self.shard_chunks * (self.chunk_bytes + 4 + 16) + 4

    @property
    def bytes(self) -> int:
        """Bytes of all shard files, exactly; unpacked, where they are packed."""
        return self.parts * (self.part_rows // self.shard_rows) * self.shard_bytes

    def key(self, shard: int) -> str:
        """Path of a shard file inside the store."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.row_shape)])

    def part_of(self, shard: int) -> int:
        """The part a shard belongs to."""
        return shard * self.shard_rows // self.part_rows

    def part_shards(self, part: int) -> range:
        """The shards of a part."""
        per = self.part_rows // self.shard_rows
        return range(part * per, (part + 1) * per)


def plan_layout(
    name: str,
    dtype: str | np.dtype[Any],
    row_shape: tuple[int, ...],
    *,
    part_rows: int,
    chunk_rows: int,
    parts: int,
    packing: Packing = "",
    dims: tuple[str, ...] = (),
) -> Layout:
    """Choose chunk and shard: the largest divisors of a part within `chunk_rows`, SHARD_BYTES."""
    kind = np.dtype(dtype)
    chunk = max(d for d in _divisors(part_rows) if d <= chunk_rows)
    row_bytes = kind.itemsize * math.prod(row_shape)
    fitting = [d for d in _divisors(part_rows // chunk) if d * chunk * row_bytes <= SHARD_BYTES]
    return Layout(
        name=name,
        dtype=kind,
        row_shape=row_shape,
        part_rows=part_rows,
        chunk_rows=chunk,
        shard_rows=chunk * max(fitting, default=1),
        parts=parts,
        packing=packing,
        dims=dims,
    )


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})
