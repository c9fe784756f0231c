"""crc32c, the checksum that follows every chunk and every index of a shard."""

from __future__ import annotations

import google_crc32c
import numpy as np

from kdcache.plans import Array

CRC = 4  # bytes of a crc32c
ENTRY = 16  # bytes of an index entry: offset and length of a chunk


def crc(*pieces: bytes | bytearray | memoryview | Array) -> int:
    """crc32c of some bytes, given in one or more contiguous pieces; nothing is copied."""
    value = 0
    for piece in pieces:
        view = (piece.data if isinstance(piece, np.ndarray) else memoryview(piece)).cast("B")
        if len(view):  # the crc library takes arrays, whose memory cannot go away, but not views
            value = google_crc32c.extend(value, np.frombuffer(view, np.uint8))
    return int(value)


def sound(data: Array) -> bool:
    """Whether the last bytes are the crc32c of those before."""
    return crc(data[:-CRC]) == int.from_bytes(data[-CRC:].tobytes(), "little")
