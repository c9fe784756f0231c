"""Shards: the Zarr v3 sharding codec over [bytes little-endian, crc32c], written and read whole.

A shard is its inner chunks, each followed by its crc32c, then an index of (offset, bytes) pairs as
uint64 with a crc32c of its own. Every shard belongs to one part and is written once.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from kdcache.errors import DamageError, IncompleteError
from kdcache.plans import Array

SHARD_BYTES = 64 * 2**20
OPEN_SHARDS = 128
CRC_BYTES = 2**20  # the crc library takes bytes objects: copy this much at a time


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an array's rows lie in shards and inner chunks; a part is a whole number of shards."""

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    part_rows: int
    chunk_rows: int
    shard_rows: int
    parts: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return (self.parts * self.part_rows, *self.row_shape)

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard file, exactly."""
        chunks = self.shard_rows // self.chunk_rows
        return chunks * (self.chunk_rows * self.row_bytes + 4) + 16 * chunks + 4

    @property
    def bytes(self) -> int:
        """Bytes of all shard files, exactly."""
        return self.parts * (self.part_rows // self.shard_rows) * self.shard_bytes

    def key(self, shard: int) -> str:
        """Path of a shard file inside the store."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.row_shape)])

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
) -> Layout:
    """Choose chunk and shard: the largest divisors of a part within `chunk_rows`, SHARD_BYTES."""
    kind = np.dtype(dtype)
    chunk = max(d for d in _divisors(part_rows) if d <= chunk_rows)
    row_bytes = kind.itemsize * int(np.prod(row_shape, dtype=np.int64))
    fitting = [d for d in _divisors(part_rows // chunk) if d * chunk * row_bytes <= SHARD_BYTES]
    return Layout(
        name=name,
        dtype=kind,
        row_shape=row_shape,
        part_rows=part_rows,
        chunk_rows=chunk,
        shard_rows=chunk * max(fitting, default=1),
        parts=parts,
    )


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def crc(*pieces: bytes | bytearray | memoryview) -> int:
    """crc32c of some bytes, given in one or more pieces."""
    value = 0
    for piece in pieces:
        view = memoryview(piece).cast("B")
        for start in range(0, len(view), CRC_BYTES):
            value = google_crc32c.extend(value, bytes(view[start : start + CRC_BYTES]))
    return int(value)


def encode_shard(rows: Array, chunk_rows: int) -> list[memoryview | bytes]:
    """Rows of one shard as the pieces of its file, in order."""
    pieces: list[memoryview | bytes] = []
    index, offset = [], 0
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    for start in range(0, len(little), chunk_rows):
        chunk = little[start : start + chunk_rows].reshape(-1).view(np.uint8).data
        pieces += [chunk, crc(chunk).to_bytes(4, "little")]
        index += [offset, len(chunk) + 4]
        offset += len(chunk) + 4
    table = np.asarray(index, "<u8").tobytes()
    return [*pieces, table, crc(table).to_bytes(4, "little")]


@dataclass
class _Shard:
    """An open shard: its descriptor, the offsets of its chunks and which of them were checked."""

    handle: int
    path: Path
    offsets: Array
    checked: set[int] = field(default_factory=set)

    def __del__(self) -> None:
        os.close(self.handle)


class ArrayReader:
    """Reads rows of one array, checking each inner chunk's crc32c when it is first touched.

    Descriptors are kept open, OPEN_SHARDS at most; reading uses `pread` only, so one reader can be
    used after a fork.
    """

    def __init__(self, root: Path, layout: Layout) -> None:
        self.root, self.layout = root, layout
        self.dtype = layout.dtype
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def __getitem__(self, rows: slice) -> Array:
        return self.read(np.array([rows.start]), np.array([rows.stop - rows.start]))

    def read(self, starts: Array, counts: Array) -> Array:
        """Rows [start, start + count) of each span, one after the other: [sum counts, ...]."""
        total = int(np.sum(counts))
        out = np.empty((total, *self.layout.row_shape), self.layout.dtype)
        flat, size = out.reshape(-1).view(np.uint8).data, self.layout.row_bytes
        done = 0
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            while count > 0:
                chunk, first = divmod(start, self.layout.chunk_rows)
                take = min(count, self.layout.chunk_rows - first)
                self._copy(chunk, first * size, flat[done : done + take * size])
                done, start, count = done + take * size, start + take, count - take
        return out

    def _copy(self, chunk: int, skip: int, target: memoryview) -> None:
        shard, inner = divmod(chunk, self.layout.shard_rows // self.layout.chunk_rows)
        file = self._shard(shard)
        if inner not in file.checked:
            self.check(file, inner)
        _fill(file, target, int(file.offsets[inner]) + skip)

    def check(self, file: _Shard, inner: int) -> None:
        """Read a whole inner chunk; DamageError if its crc32c does not match."""
        data = bytearray(self.layout.chunk_rows * self.layout.row_bytes + 4)
        _fill(file, memoryview(data), int(file.offsets[inner]))
        if crc(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
            raise DamageError(f"{file.path} is damaged: chunk {inner} fails its crc32c")
        file.checked.add(inner)

    def check_shard(self, shard: int) -> None:
        """Check the index and every inner chunk of a shard."""
        file = self._shard(shard)
        for inner in range(self.layout.shard_rows // self.layout.chunk_rows):
            self.check(file, inner)

    def _shard(self, number: int) -> _Shard:
        found = self._open.get(number)
        if found is None:
            found = self._open[number] = self._open_shard(self.root / self.layout.key(number))
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return found

    def _open_shard(self, path: Path) -> _Shard:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise IncompleteError(
                f"{path} is not there; run the same `kdcache build` again to add what is missing"
            ) from error
        shard = _Shard(handle, path, np.empty(0))
        size = os.fstat(handle).st_size
        if size != self.layout.shard_bytes:
            raise DamageError(
                f"{path} is damaged: expected {self.layout.shard_bytes} bytes, found {size}"
            )
        shard.offsets = self._index(shard)
        return shard

    def _index(self, shard: _Shard) -> Array:
        chunks = self.layout.shard_rows // self.layout.chunk_rows
        data = bytearray(16 * chunks + 4)
        _fill(shard, memoryview(data), self.layout.shard_bytes - len(data))
        table = np.frombuffer(data, "<u8", 2 * chunks).reshape(chunks, 2)
        size = self.layout.chunk_rows * self.layout.row_bytes + 4
        whole = crc(memoryview(data)[:-4]) == int.from_bytes(data[-4:], "little")
        end = self.layout.shard_bytes - len(data)
        if not whole or (table[:, 1] != size).any() or (table[:, 0] > end - size).any():
            raise DamageError(f"{shard.path} is damaged: its index fails its crc32c")
        return table[:, 0].astype(np.int64)


def _fill(shard: _Shard, target: memoryview, offset: int) -> None:
    while len(target):
        got = os.preadv(shard.handle, [target], offset)
        if got == 0:
            raise DamageError(f"{shard.path} is damaged: it ends at byte {offset}")
        target, offset = target[got:], offset + got
