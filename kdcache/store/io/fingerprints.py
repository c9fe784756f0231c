"""What a commit says of a shard: enough to tell it from every other by reading little of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from kdcache.manifest import Json

Fingerprint = Callable[[int, str], Json]
"""What was committed of an object: (part, key) to its size and digest."""


def shard_fingerprint(pieces: Sequence[bytes | memoryview]) -> Json:
    """The entry of a shard made of `pieces`: data and crc32c by turns, as `encode_shard` gives."""
    size = sum(memoryview(piece).nbytes for piece in pieces)
    return {"bytes": size, "chunks_sha256": checksums_digest(map(bytes, pieces[1::2]))}


def checksums_digest(checksums: Iterable[bytes | bytearray]) -> str:
    """SHA-256, in hex, of the crc32c's of a shard's chunks in their order and of its index.

    The crc32c of the whole file would not do: data followed by its own crc32c has the same crc32c
    whatever the data is.
    """
    return hashlib.sha256(b"".join(checksums)).hexdigest()
