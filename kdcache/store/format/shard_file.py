"""One shard on disk: opened, known to be the committed one, its chunks read and checked."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kdcache.errors import DamageError, IncompleteError
from kdcache.manifest import Json
from kdcache.plans import Array
from kdcache.store.format.layout import Layout
from kdcache.store.io.checksums import CRC, crc, sound
from kdcache.store.io.fingerprints import checksums_digest
from kdcache.store.io.object_path import Root
from kdcache.store.io.open_files import Descriptor, Handle

FETCH_STEP = 2**17  # bytes: of a longer range a system may fetch the beginning only

_spare: list[Array] = []  # scratch memory that no thread is using


class CommittedFile(ABC):
    """A shard's file, known to be the one that was committed under its name."""

    def __init__(self, path: Root, layout: Layout, fingerprint: Callable[[], Json] | None) -> None:
        self.path, self.layout, self.fingerprint = path, layout, fingerprint
        self.file = Descriptor(path)
        self.identity: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.path,
            self.layout,
            self.fingerprint,
        )  # what was read is checked anew

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
            self.learn(handle)
            self.identity = handle.identity
        return handle

    @abstractmethod
    def learn(self, handle: Handle) -> None:
        """Read where its chunks lie; DamageError if that, or the file, is not as committed."""

    def identify(self, handle: Handle, ends: Sequence[int]) -> None:
        """DamageError if its size, or the checksums that end at `ends` and its last, are others.

        They cannot tell by themselves: those of a shard that took another's place are in order.
        """
        fingerprint = self.fingerprint() if self.fingerprint else {"bytes": handle.size}
        if handle.size != fingerprint["bytes"]:
            raise self.damaged(f"expected {fingerprint['bytes']} bytes, found {handle.size}")
        committed = fingerprint.get("chunks_sha256")
        if committed is None:  # of no store, or of one of the first format
            return
        places = [(end - CRC, end) for end in (*ends, handle.size)]
        for start, _ in places:
            fetch_ahead(handle, start, CRC)
        found = [self.read(handle, *place).tobytes() for place in places]
        if checksums_digest(found) != committed:
            raise self.damaged("it is not the object that was committed there")

    def damaged(self, what: str) -> DamageError:
        """The error to raise. What was read is forgotten: the next reading starts over."""
        self.identity, self.file.current = (), None
        return DamageError(f"{self.path} is damaged: {what}")

    def read(self, handle: Handle, start: int, end: int) -> Array:
        """Its bytes from `start` to `end`."""
        data = np.empty(end - start, np.uint8)
        self.fill(handle, [data], start)
        return data

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


class ShardFile(CommittedFile):
    """The file of chunks of one size, and which of them were checked."""

    checked: bytearray

    def learn(self, handle: Handle) -> None:
        """Whole, its index that of every such shard: chunk after chunk."""
        chunks, size = self.layout.shard_chunks, self.layout.chunk_bytes + CRC
        if handle.size != self.layout.shard_bytes:
            raise self.damaged(f"expected {self.layout.shard_bytes} bytes, found {handle.size}")
        data = self.read(handle, chunks * size, handle.size)
        table = data[:-CRC].view("<u8").reshape(chunks, 2)
        if not sound(data):
            raise self.damaged("its index fails its crc32c")
        if (table[:, 0] != np.arange(chunks) * size).any() or (table[:, 1] != size).any():
            raise self.damaged("its index is not that of its chunks in their order")
        self.identify(handle, [i * size for i in range(1, chunks + 1)])
        self.checked = bytearray(chunks)

    def fetch_ahead(self, handle: Handle, inners: Iterable[int]) -> None:
        """Have the system fetch chunks that are yet to be checked and that it has to wait for."""
        size = self.layout.chunk_bytes + CRC
        for inner in inners:
            if not self.checked[inner]:
                fetch_ahead(handle, inner * size, size)

    def fill_checked(self, handle: Handle, inner: int, offset: int, target: memoryview) -> None:
        """Read a whole inner chunk, what is at `offset` in the file into `target`, and check it.

        DamageError if its crc32c does not match. The rest of the chunk goes to scratch memory.
        """
        size = self.layout.chunk_bytes
        start = inner * (size + CRC)
        skip, scratch = offset - start, _take(size + CRC)
        before, after = scratch[:skip], scratch[skip + len(target) : size + CRC]
        self.fill(handle, [before, target, after], start)
        if crc(before, target, after[:-CRC]) != int.from_bytes(after[-CRC:].tobytes(), "little"):
            raise self.damaged(f"chunk {inner} fails its crc32c")
        self.checked[inner] = 1
        _spare.append(scratch)


def fetch_ahead(handle: Handle, start: int, size: int) -> None:
    """Have the system fetch a range of a file, unless its middle is in memory; waits for nothing.

    Reading alone waits for one range after the other, where a disk serves many at a time.
    """
    try:
        os.preadv(handle.number, [bytearray(1)], start + size // 2, os.RWF_NOWAIT)
    except BlockingIOError:
        for at in range(start, start + size, FETCH_STEP):
            length = min(FETCH_STEP, start + size - at)
            os.posix_fadvise(handle.number, at, length, os.POSIX_FADV_WILLNEED)
    except OSError:  # of a file system that cannot tell
        return


def _take(size: int) -> Array:
    try:
        scratch = _spare.pop()
    except IndexError:
        return np.empty(size, np.uint8)
    return scratch if len(scratch) >= size else np.empty(size, np.uint8)
