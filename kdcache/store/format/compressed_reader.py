"""Shards whose inner chunks are compressed: standard Zarr codecs, so sizes vary and are indexed.

An inner chunk is [bytes, zstd, crc32c], or [transpose, bytes, zstd, crc32c] where columns are to
lie together. A chunk is read, checked and decompressed whole, and then kept for a while: rows that
are read in random order cost a chunk each unless the array is small.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numcodecs import zstd

from kdcache.errors import CacheError
from kdcache.plans import Array
from kdcache.signals import Packing
from kdcache.store.format.array_reader import ArrayReader, encode_shard
from kdcache.store.format.layout import ZSTD_LEVELS, Layout
from kdcache.store.format.shard_file import CommittedFile
from kdcache.store.format.spans import Pieces, cut_spans
from kdcache.store.io.checksums import CRC, ENTRY, crc, sound
from kdcache.store.io.fingerprints import Fingerprint
from kdcache.store.io.object_path import Root, absolute
from kdcache.store.io.open_files import Handle
from kdcache.store.io.safe_paths import inside

CACHED_BYTES = 64 * 2**20  # of decompressed chunks, for each array


def encode_rows(rows: Array, layout: Layout) -> list[memoryview | bytes]:
    """Rows of one shard as the pieces of its file, in order: data and crc32c by turns."""
    if not layout.packing:
        return encode_shard(rows, layout.chunk_rows)
    chunks = [rows[i : i + layout.chunk_rows] for i in range(0, len(rows), layout.chunk_rows)]
    packed = [_pack(chunk, layout.packing) for chunk in chunks]
    sizes = [len(data) + CRC for data in packed]
    offsets = [0, *itertools.accumulate(sizes)][:-1]
    table = np.array([offsets, sizes], "<u8").T.tobytes()
    return [
        piece for data in [*packed, table] for piece in (data, crc(data).to_bytes(CRC, "little"))
    ]


def _pack(rows: Array, packing: Packing) -> bytes:
    little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    if packing == "columns":
        little = little.T
    data: bytes = zstd.compress(np.ascontiguousarray(little).tobytes(), ZSTD_LEVELS[packing])
    return data


def _unpack(data: Any, layout: Layout) -> Array:
    """The rows of a chunk; ValueError or RuntimeError if it was not made by `_pack`."""
    flat = np.zeros(layout.chunk_bytes, np.uint8)  # of the size we expect, whatever the frame says
    zstd.decompress(data, flat)
    rows = flat.view(layout.dtype)
    if layout.packing == "columns":
        turned = rows.reshape(*layout.row_shape[::-1], layout.chunk_rows)
        return np.ascontiguousarray(turned.T)
    return rows.reshape(layout.chunk_rows, *layout.row_shape)


class PackedReader:
    """Reads rows of one compressed array; what `ArrayReader` promises holds here too.

    Every chunk is checked whenever it is read from its file. The CACHED_BYTES used last stay
    decompressed in memory.
    """

    def __init__(self, root: Root, layout: Layout, fingerprint: Fingerprint | None = None) -> None:
        self.root, self.layout, self.fingerprint = root, layout, fingerprint
        self.dtype = layout.dtype
        self._shards: dict[int, _PackedShard] = {}
        self._cached_chunks: OrderedDict[tuple[int, int, int], Array] = OrderedDict()
        self._most = max(1, CACHED_BYTES // layout.chunk_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (absolute(self.root), self.layout, self.fingerprint)

    def __getitem__(self, rows: slice) -> Array:
        return self.read(np.array([rows.start]), np.array([rows.stop - rows.start]))

    def read(self, starts: Array, counts: Array, out: Array | None = None) -> Array:
        """As `ArrayReader.read`."""
        return self.gather(cut_spans(starts, counts, self.layout.chunk_rows), out)

    def gather(self, pieces: Pieces, out: Array | None = None) -> Array:
        """As `ArrayReader.gather`."""
        shape = (pieces.total, *self.layout.row_shape)
        if out is None:
            out = np.empty(shape, self.dtype)
        assert pieces.chunk_rows == self.layout.chunk_rows, "the pieces are another array's"
        assert out.shape == shape, "out has another shape"
        assert out.dtype == self.dtype, "out has another dtype"
        with self._reading():
            for number, cuts in pieces.by_shard(self.layout.shard_chunks).items():
                for inner, first, rows, at in cuts:
                    out[at : at + rows] = self._chunk(number, inner)[first : first + rows]
        return out

    def _chunk(self, number: int, inner: int) -> Array:
        shard, handle = self._open(number)
        key = (number, inner, shard.opened)
        rows = self._cached_chunks.pop(key, None)
        if rows is None:
            rows = shard.rows(handle, inner)
        self._cached_chunks[key] = rows
        while len(self._cached_chunks) > self._most:
            self._cached_chunks.popitem(last=False)
        return rows

    def _open(self, number: int) -> tuple[_PackedShard, Handle]:
        shard = self._shards.get(number)
        if shard is None:
            key, fingerprint = self.layout.key(number), None
            if self.fingerprint is not None:
                fingerprint = partial(self.fingerprint, self.layout.part_of(number), key)
            shard = self._shards[number] = _PackedShard(
                inside(self.root, key), self.layout, fingerprint
            )
        return shard, shard.open()

    def identify(self, number: int) -> None:
        """As `ArrayReader.identify`."""
        with self._reading():
            self._open(number)

    def require_whole(self) -> None:
        """As `ArrayReader.require_whole`."""
        for number in range(self.layout.shape[0] // self.layout.shard_rows):
            self.identify(number)

    def check_shard(self, number: int) -> None:
        """As `ArrayReader.check_shard`; chunks must also decompress."""
        with self._reading():
            shard, handle = self._open(number)
            for inner in range(self.layout.shard_chunks):
                shard.rows(handle, inner)

    def _reading(self) -> _Readable:
        return _Readable(self.root / self.layout.name)


class _Readable:
    """Turns a failing disk into a CacheError."""

    def __init__(self, path: Root) -> None:
        self.path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise CacheError(
                f"{self.path} cannot be read: {error.strerror}; check the disk it is on, or copy "
                "the cache to another"
            ) from error


class _PackedShard(CommittedFile):
    """The file of compressed chunks, and where they lie in it."""

    opened = 0  # how often the file was found to be a new one
    spans: Sequence[tuple[int, int]] = ()

    def learn(self, handle: Handle) -> None:
        """Its index of chunk after chunk."""
        self.spans = self._index(handle)
        self.identify(handle, [end for _, end in self.spans])
        self.opened += 1

    def _index(self, handle: Handle) -> list[tuple[int, int]]:
        """(start, end) of every chunk, its crc32c included: chunk after chunk, up to the index."""
        chunks = self.layout.shard_chunks
        end = handle.size - chunks * ENTRY - CRC
        if end < chunks * CRC:
            raise self.damaged(f"{handle.size} bytes are too few for its {chunks} chunks")
        data = self.read(handle, end, handle.size)
        table = data[:-CRC].view("<u8").reshape(chunks, 2)
        if not sound(data):
            raise self.damaged("its index fails its crc32c")
        ends = np.cumsum(table[:, 1])
        if (table[:, 1] < CRC).any() or (table[1:, 0] != ends[:-1]).any() or table[0, 0]:
            raise self.damaged("its index is not that of its chunks in their order")
        if (table[:, 1] > end).any() or ends[-1] != end:
            raise self.damaged("its index does not fit its size")
        return list(zip(table[:, 0].tolist(), ends.tolist(), strict=True))

    def rows(self, handle: Handle, inner: int) -> Array:
        """The rows of a chunk, checked; DamageError."""
        data = self.read(handle, *self.spans[inner])
        if not sound(data):
            raise self.damaged(f"chunk {inner} fails its crc32c")
        try:
            return _unpack(data[:-CRC], self.layout)
        except (ValueError, RuntimeError) as error:
            raise self.damaged(f"chunk {inner} does not decompress ({error})") from error


def reader_of(
    root: Root, layout: Layout, fingerprint: Fingerprint | None = None
) -> ArrayReader | PackedReader:
    """The reader that fits how an array's chunks are stored."""
    return (PackedReader if layout.packing else ArrayReader)(root, layout, fingerprint)


def stored_bytes(layout: Layout, fingerprint: Fingerprint, parts: Iterable[int]) -> int:
    """Bytes of the shard files of some parts, as their commits say."""
    return sum(
        int(fingerprint(part, layout.key(shard))["bytes"])
        for part in parts
        for shard in layout.part_shards(part)
    )
