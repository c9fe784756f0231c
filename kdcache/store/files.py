"""Local file operations that survive a crash: what they made is whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import CacheError

REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EFBIG: "files may not grow that large here; raise the limit (ulimit -f)",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EACCES: "permission denied; choose a folder you can write to",
    errno.EPERM: "permission denied; choose a folder you can write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "part of the path is a file; choose another folder",
    errno.ENOENT: "the folder it belongs in is not there; make it first",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "part of the path is a file; choose another folder",
    errno.EBUSY: "it is a mount point; choose a folder inside it",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EIO: "the disk reports an error; choose a folder on another one",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failing disk into a CacheError that says what to do; finished parts stay."""
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0)
        if reason is None:
            raise
        raise CacheError(
            f"cannot write {path}: {reason} and run the same command again "
            "(finished parts are kept)"
        ) from error


def write_synced(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a new file and wait until it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            while len(view):
                view = view[file.write(view) :]
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_if_absent(path: Path, data: bytes, scratch: Path) -> bool:
    """Create `path` with `data` unless it exists; of several writers exactly one gets True."""
    write_synced(scratch, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        scratch.unlink()
    sync_folder(path.parent)
    sync_folder(path.parent.parent)
    return True


def publish(source: Path, target: Path) -> None:
    """Move a staged file to its place, for good."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    sync_folder(target.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it; one that is not there is fine."""
    shutil.rmtree(path, ignore_errors=True)
