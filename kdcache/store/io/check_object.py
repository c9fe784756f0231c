"""Check an object that is in memory, whole, without knowing the array it belongs to."""

from __future__ import annotations

import numpy as np

from kdcache.manifest import Json
from kdcache.store.io.checksums import CRC, ENTRY, crc, sound
from kdcache.store.io.fingerprints import checksums_digest


def object_fingerprint(key: str, data: bytes) -> Json | None:
    """What a commit would say of an object with these bytes; None if they are no shard's."""
    if key.rpartition("/")[2] == "zarr.json":
        return {"bytes": len(data), "crc32c": crc(data)}
    if _chunks(data) is None:
        return None
    return {"bytes": len(data), "chunks_sha256": _identity(data)}


def shard_problem(data: bytes) -> str | None:
    """What is wrong with the bytes of a shard: its index or a chunk fails its crc32c; or None."""
    chunks = _chunks(data)
    if chunks is None:
        return "its index fails its crc32c"
    view = np.frombuffer(data, np.uint8)
    for number, (start, end) in enumerate(chunks):
        if not sound(view[start:end]):
            return f"chunk {number} fails its crc32c"
    return None


def object_problem(data: bytes, fingerprint: Json) -> str | None:
    """What tells the bytes of an object from what its commit says of it; None if nothing does."""
    if len(data) != fingerprint["bytes"]:
        return f"expected {fingerprint['bytes']} bytes, found {len(data)}"
    if "crc32c" in fingerprint:
        right = crc(data) == fingerprint["crc32c"]
        return None if right else "its crc32c does not match its commit"
    problem = shard_problem(data)
    if problem is None and _identity(data) != fingerprint["chunks_sha256"]:
        return "it is not the object that was committed there"
    return problem


def _identity(data: bytes) -> str:
    chunks = _chunks(data)
    assert chunks is not None
    ends = [*(end for _, end in chunks), len(data)]
    return checksums_digest(data[end - CRC : end] for end in ends)


def _chunks(data: bytes) -> list[tuple[int, int]] | None:
    """Where a shard's chunks start and end; None if its index is damaged.

    The index does not say how long it is, but chunks and entries together fill the shard.
    """
    count, filled = 0, CRC
    while filled < len(data):
        count += 1
        at = len(data) - CRC - count * ENTRY
        length = int.from_bytes(data[max(at, 0) + 8 : max(at, 0) + ENTRY], "little")
        if length <= CRC:
            return None
        filled += length + ENTRY
    table = np.frombuffer(data, np.uint8)[len(data) - CRC - count * ENTRY :]
    if filled != len(data) or not count or not sound(table):
        return None
    spans: list[list[int]] = table[:-CRC].view("<u8").reshape(count, 2).tolist()
    end = len(data) - len(table)
    if any(start + length > end for start, length in spans):
        return None
    return [(start, start + length) for start, length in spans]
