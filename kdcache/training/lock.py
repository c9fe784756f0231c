"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import ConfigError

LOCK = "lock"


def require_free(folder: Path, place: Path) -> None:
    """Raise ConfigError if a process that lives has the lock in `place`; `folder` is for people."""
    try:
        handle = os.open(place / LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        _take(handle, folder, fcntl.LOCK_SH)
    finally:
        os.close(handle)


@contextmanager
def one_run(folder: Path, place: Path) -> Iterator[None]:
    """Hold the lock in `place`, a folder, which is made; the system drops it with the process.

    Raises ConfigError, naming the process, if another holds it.
    """
    place.mkdir(parents=True, exist_ok=True)
    path = place / LOCK
    handle = _opened(path, folder)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _opened(path: Path, folder: Path) -> int:
    """A locked descriptor of the file that lies at `path` now, not of one removed meanwhile."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(handle, folder, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _take(handle: int, folder: Path, kind: int) -> None:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode("utf-8", "replace") or "unknown"
        raise ConfigError(
            f"process {holder} is training into {folder}; wait for it, or choose another folder "
            "(--out)"
        ) from None
    except OSError:
        return  # a file system without locks, where nobody can hold one
