"""One shard on disk: opened, known to be the committed one, its chunks read and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import google_crc32c
import numpy as np

from kdcache.errors import DamageError, IncompleteError
from kdcache.manifest import Json
from kdcache.plans import Array
from kdcache.store.descriptors import Descriptor, Handle
from kdcache.store.facts import checksums_digest
from kdcache.store.layout import Layout
from kdcache.store.objects import Root

_spare: list[Array] = []  # scratch memory that no thread is using


def crc(*pieces: bytes | bytearray | memoryview | Array) -> int:
    """crc32c of some bytes, given in one or more contiguous pieces; nothing is copied."""
    value = 0
    for piece in pieces:
        view = (piece.data if isinstance(piece, np.ndarray) else memoryview(piece)).cast("B")
        if len(view):  # the crc library takes arrays, whose memory cannot go away, but not views
            value = google_crc32c.extend(value, np.frombuffer(view, np.uint8))
    return int(value)


class ShardFile:
    """A shard: its file and which of its chunks were checked."""

    def __init__(self, path: Root, layout: Layout, facts: Callable[[], Json] | None) -> None:
        self.path, self.layout, self.facts = path, layout, facts
        self.file = Descriptor(path)
        self.identity: tuple[int, ...] = ()
        self.checked = bytearray()

    def open(self) -> Handle:
        """Its file. One that was replaced since it was last read (repaired, say) is read anew."""
        try:
            handle = self.file.handle()
        except FileNotFoundError as error:
            raise IncompleteError(
                f"{self.path} is not there; run the same `kdcache build` again to add what is "
                "missing"
            ) from error
        if handle.identity != self.identity:
            self._learn(handle)
        return handle

    def _learn(self, handle: Handle) -> None:
        if handle.size != self.layout.shard_bytes:
            raise self.damaged(f"expected {self.layout.shard_bytes} bytes, found {handle.size}")
        self._check_index(handle)
        self._identify(handle)
        self.checked = bytearray(self.layout.shard_chunks)
        self.identity = handle.identity

    def _check_index(self, handle: Handle) -> None:
        """DamageError unless the index says what every shard's does: chunk after chunk."""
        chunks, size = self.layout.shard_chunks, self.layout.chunk_bytes + 4
        data = np.empty(16 * chunks + 4, np.uint8)
        self.fill(handle, [data], chunks * size)
        table = data[:-4].view("<u8").reshape(chunks, 2)
        if crc(data[:-4]) != int.from_bytes(data[-4:].tobytes(), "little"):
            raise self.damaged("its index fails its crc32c")
        if (table[:, 0] != np.arange(chunks) * size).any() or (table[:, 1] != size).any():
            raise self.damaged("its index is not that of its chunks in their order")

    def _identify(self, handle: Handle) -> None:
        """DamageError if this is not the shard that was committed under its name.

        Its own checksums cannot tell: those of a shard that took another's place are in order.
        """
        committed = self.facts().get("chunks_sha256") if self.facts else None
        if committed is None:  # of no store, or of one of the first format
            return
        size = self.layout.chunk_bytes + 4
        ends = [*(i * size - 4 for i in range(1, self.layout.shard_chunks + 1)), handle.size - 4]
        found = [bytearray(4) for _ in ends]
        for checksum, offset in zip(found, ends, strict=True):
            self.fill(handle, [checksum], offset)
        if checksums_digest(found) != committed:
            raise self.damaged("it is not the object that was committed there")

    def damaged(self, what: str) -> DamageError:
        """The error to raise. What was read is forgotten: the next reading starts over."""
        self.identity, self.file.current = (), None
        return DamageError(f"{self.path} is damaged: {what}")

    def fill(self, handle: Handle, buffers: Sequence[Any], offset: int) -> None:
        """Read the bytes from `offset` on into buffers, one after the other, by one call."""
        if os.preadv(handle.number, buffers, offset) == sum(map(len, buffers)):
            return
        for buffer in buffers:  # the system may give less than was asked for
            view = memoryview(buffer)
            while len(view):
                got = os.preadv(handle.number, [view], offset)
                if got == 0:
                    raise self.damaged(f"it ends at byte {offset}")
                view, offset = view[got:], offset + got

    def fill_checked(self, handle: Handle, inner: int, offset: int, target: memoryview) -> None:
        """Read a whole inner chunk, what is at `offset` in the file into `target`, and check it.

        DamageError if its crc32c does not match. The rest of the chunk goes to scratch memory.
        """
        size = self.layout.chunk_bytes
        start = inner * (size + 4)
        skip, scratch = offset - start, _take(size + 4)
        before, after = scratch[:skip], scratch[skip + len(target) : size + 4]
        self.fill(handle, [before, target, after], start)
        if crc(before, target, after[:-4]) != int.from_bytes(after[-4:].tobytes(), "little"):
            raise self.damaged(f"chunk {inner} fails its crc32c")
        self.checked[inner] = 1
        _spare.append(scratch)


def _take(size: int) -> Array:
    try:
        scratch = _spare.pop()
    except IndexError:
        return np.empty(size, np.uint8)
    return scratch if len(scratch) >= size else np.empty(size, np.uint8)
