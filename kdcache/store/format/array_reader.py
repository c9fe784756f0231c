"""Shards: the Zarr v3 sharding codec over [bytes little-endian, crc32c], written and read whole.

A shard is its inner chunks, each followed by its crc32c, then an index of (offset, bytes) pairs as
uint64 with a crc32c of its own. Every shard belongs to one part and is written once.

What a reader guarantees: every byte it returns came from an inner chunk whose crc32c, in the file
as it then was, it has checked. A chunk is checked when it is first touched, whole, however few of
its rows are asked for, and not again while its file keeps its identity (inode, size, time of
change); a chunk that fails is checked again each time.
"""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import numpy as np

from kdcache.errors import CacheError
from kdcache.plans import Array
from kdcache.store.format.layout import SHARD_BYTES, Layout, plan_layout
from kdcache.store.format.shard_file import ShardFile
from kdcache.store.format.spans import Cut, Pieces, cut_spans
from kdcache.store.io.checksums import crc
from kdcache.store.io.fingerprints import Fingerprint
from kdcache.store.io.object_path import Root, absolute
from kdcache.store.io.open_files import Handle
from kdcache.store.io.safe_paths import inside

__all__ = ["SHARD_BYTES", "ArrayReader", "Layout", "encode_shard", "plan_layout"]

RESIDENT_BYTES = 16 * 2**20  # reading small arrays piece by piece costs more than their memory
PAGE = 4096
AHEAD_BYTES = 2**28  # of shards whose chunks are fetched from a cold disk at once


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


class ArrayReader:
    """Reads rows of one array by `preadv` into the result, checking chunks when first touched.

    An array of at most RESIDENT_BYTES is kept in memory, chunk by chunk as they are touched, and
    its rows are copied from there. Any number of threads may read at once, and a forked child may
    go on reading. A copy, pickled or not, starts with nothing open and nothing read. With
    `fingerprint`, a shard must be the one that was committed.
    """

    def __init__(self, root: Root, layout: Layout, fingerprint: Fingerprint | None = None) -> None:
        self.root, self.layout, self.fingerprint = root, layout, fingerprint
        self.dtype = layout.dtype
        self._row, self._stride = layout.row_bytes, layout.chunk_bytes + 4  # of a chunk in its file
        self._shards: dict[int, ShardFile] = {}
        self._resident: Array | None = None
        if layout.bytes <= RESIDENT_BYTES:
            self._resident = np.empty(layout.shape, layout.dtype)
            self._have = bytearray(layout.shape[0] // layout.chunk_rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (absolute(self.root), self.layout, self.fingerprint)

    def __getitem__(self, rows: slice) -> Array:
        return self.read(np.array([rows.start]), np.array([rows.stop - rows.start]))

    def read(self, starts: Array, counts: Array, out: Array | None = None) -> Array:
        """Rows [start, start + count) of each span, one after the other: [sum counts, ...].

        They are written to `out`, contiguous and of that shape and dtype, if it is given.

        Raises DamageError, IncompleteError, CacheError.
        """
        return self.gather(cut_spans(starts, counts, self.layout.chunk_rows), out)

    def gather(self, pieces: Pieces, out: Array | None = None) -> Array:
        """Like `read`, of rows that were cut at the edges of this array's chunks."""
        shape = (pieces.total, *self.layout.row_shape)
        if out is None:
            out = aligned(shape, self.dtype)
        assert pieces.chunk_rows == self.layout.chunk_rows, "the pieces are another array's"
        assert out.shape == shape, "out has another shape"
        assert out.dtype == self.dtype, "out has another dtype"
        try:
            if self._resident is None:
                self._read(pieces, out.reshape(-1).view(np.uint8).data)
            else:
                self._copy(pieces, self._resident, out)
        except OSError as error:
            raise self._unreadable(error) from error
        return out

    def _read(self, pieces: Pieces, flat: memoryview) -> None:
        row, stride, preadv = self._row, self._stride, os.preadv
        later: list[tuple[int, list[Cut]]] = []
        for number, cuts in pieces.by_shard(self.layout.shard_chunks).items():
            shard, handle = self._open(number)
            descriptor, wanted = handle.number, row * sum([rows for _, _, rows, _ in cuts])
            if (
                0 not in shard.checked
                and wanted
                == sum(
                    [  # what reading small documents costs beyond the copying is this line
                        preadv(
                            descriptor, (flat[at * row : (at + n) * row],), i * stride + first * row
                        )
                        for i, first, n, at in cuts
                    ]
                )
            ):
                continue
            later.append((number, cuts))
        if later:
            at_once = max(1, AHEAD_BYTES // self.layout.shard_bytes)
            for begin in range(0, len(later), at_once):
                self._read_checked(later[begin : begin + at_once], flat)

    def _read_checked(self, some: list[tuple[int, list[Cut]]], flat: memoryview) -> None:
        """Read shards that have chunks to check; those of a cold disk are fetched all at once."""
        row, stride = self._row, self._stride
        for number, cuts in some:
            shard, handle = self._open(number)
            shard.fetch_ahead(handle, dict.fromkeys(inner for inner, _, _, _ in cuts))
        for number, cuts in some:
            shard, handle = self._open(number)
            for inner, first, rows, at in cuts:
                target, start = flat[at * row : (at + rows) * row], inner * stride + first * row
                if shard.checked[inner]:
                    shard.fill(handle, (target,), start)
                else:
                    shard.fill_checked(handle, inner, start, target)

    def _copy(self, pieces: Pieces, resident: Array, out: Array) -> None:
        have, fetched = self._have, False
        for chunk, first, rows, at in pieces.cuts:
            if not have[chunk]:
                if not fetched:
                    self._fetch_ahead(pieces)
                    fetched = True
                self._keep(chunk, resident)
            start = chunk * pieces.chunk_rows + first
            out[at : at + rows] = resident[start : start + rows]

    def _fetch_ahead(self, pieces: Pieces) -> None:
        chunks = dict.fromkeys(chunk for chunk, _, _, _ in pieces.cuts if not self._have[chunk])
        for chunk in chunks:
            number, inner = divmod(chunk, self.layout.shard_chunks)
            shard, handle = self._open(number)
            shard.fetch_ahead(handle, [inner])

    def _keep(self, chunk: int, resident: Array) -> None:
        """Have a chunk in memory: what is there for others to read was checked before."""
        rows = self.layout.chunk_rows
        number, inner = divmod(chunk, self.layout.shard_chunks)
        shard, handle = self._open(number)
        data = aligned((rows, *self.layout.row_shape), self.dtype)
        flat = data.reshape(-1).view(np.uint8).data
        shard.fill_checked(handle, inner, inner * self._stride, flat)
        resident[chunk * rows : (chunk + 1) * rows] = data
        self._have[chunk] = 1

    def _open(self, number: int) -> tuple[ShardFile, Handle]:
        shard = self._shards.get(number)
        if shard is None:
            key, fingerprint = self.layout.key(number), None
            if self.fingerprint is not None:
                fingerprint = partial(self.fingerprint, self.layout.part_of(number), key)
            shard = self._shards[number] = ShardFile(
                inside(self.root, key), self.layout, fingerprint
            )
        return shard, shard.open()

    def identify(self, number: int) -> None:
        """Raise unless a shard is there with its size, and is the one that was committed.

        Raises DamageError, IncompleteError, CacheError.
        """
        try:
            self._open(number)
        except OSError as error:
            raise self._unreadable(error) from error

    def require_whole(self) -> None:
        """As `identify`, for every shard: before memory is taken for all of their rows."""
        for number in range(self.layout.shape[0] // self.layout.shard_rows):
            self.identify(number)

    def check_shard(self, number: int) -> None:
        """Check the index and every inner chunk of a shard, whether checked before or not."""
        try:
            shard, handle = self._open(number)
            for inner in range(self.layout.shard_chunks):
                shard.fill_checked(handle, inner, inner * self._stride, memoryview(bytearray()))
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> CacheError:
        return CacheError(
            f"{error.filename or self.root / self.layout.name} cannot be read: {error.strerror}; "
            "check the disk it is on, or copy the cache to another"
        )


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised array that starts a page of memory.

    Chunks start a few bytes after a page of their file, and where the kernel copies (`rep movsb`)
    to an address 1 to 63 bytes further into its page than the source, it took 5 times as long.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + size].view(dtype).reshape(shape)
