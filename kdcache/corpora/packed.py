"""Compressed corpus files, opened as what they hold."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO


def _by_arrow(name: str, path: Path) -> io.BufferedReader:
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), name)
    return io.BufferedReader(stream)


def _by_lzma(path: Path) -> io.BufferedReader:
    # Buffered itself, and of another type for it; closed with what is returned.
    stream: Any = lzma.LZMAFile(path)  # noqa: SIM115
    return io.BufferedReader(stream)


PACKED: Mapping[str, Callable[[Path], io.BufferedReader]] = {
    ".gz": partial(_by_arrow, "gzip"),
    ".bz2": partial(_by_arrow, "bz2"),
    ".xz": _by_lzma,
    ".zst": partial(_by_arrow, "zstd"),
}
"""Suffixes of compressed files, and what opens the bytes they hold."""

FAILURES = (OSError, EOFError, lzma.LZMAError)
"""What reading a file raises, a compressed one that is damaged among them."""


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its suffix."""
    return path.suffix.lower() in PACKED


def unpacked(path: Path) -> Path:
    """The path without the suffix of a compressed file."""
    return path.with_suffix("") if is_packed(path) else path


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file, compressed or not, for the bytes it holds."""
    return PACKED[path.suffix.lower()](path) if is_packed(path) else path.open("rb")


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a file, compressed or not, for the text it holds, without a byte order mark."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline=newline)


def is_damage(path: Path, error: BaseException) -> bool:
    """Whether a failure to read a file says that it is no whole compressed one."""
    return is_packed(path) and getattr(error, "errno", None) is None


def lines_left(path: Path) -> int:
    """Number of the line at which a damaged file breaks off."""
    number = 1
    with suppress(*FAILURES), open_bytes(path) as file:
        while chunk := file.read1(1 << 10):
            number += chunk.count(b"\n")
    return number
