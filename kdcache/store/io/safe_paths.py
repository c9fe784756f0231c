"""Where an object of a store lies, and no further: links may not lead a reader elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TypeVar

from kdcache.errors import DamageError
from kdcache.store.io.object_path import ObjectPath, Root

T = TypeVar("T")


def inside(root: Root, key: str) -> Root:
    """The path of an object; DamageError if links lead from it out of the store.

    `root` itself may be a link: its user has chosen it. Object stores have none.
    """
    if isinstance(root, ObjectPath):
        return root / key
    path = root / key
    if _straight(str(root), key):
        return path
    found = os.path.realpath(path)
    if not found.startswith(os.path.join(os.path.realpath(root), "")):
        raise DamageError(
            f"{path} leads out of the cache, to {found}; a cache keeps no links: copy it again "
            "with its links followed (cp -rL)"
        )
    return path


def _straight(folder: str, key: str) -> bool:
    """Whether a key goes through no link and nowhere up; realpath asks of each folder above too."""
    if key.startswith("/") or ".." in key:
        return False
    for part in key.split("/"):
        folder = f"{folder}/{part}"
        try:
            if stat.S_ISLNK(os.lstat(folder).st_mode):
                return False
        except OSError:  # is not there: whoever reads it says so
            break
    return True


def read_regular(path: Root, limit: int) -> bytes:
    """All bytes of a file; OSError if it cannot be read, DamageError beyond `limit` bytes.

    Pipes and devices, which could keep a reader waiting or never end, are refused.
    """
    if isinstance(path, ObjectPath):
        return path.read_bytes(limit)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise DamageError(f"{path} is damaged: it is no file")
    with open(handle, "rb") as file:
        if status.st_size > limit:
            raise DamageError(
                f"{path} is damaged: {status.st_size} bytes; {limit} at most can belong here"
            )
        return file.read()


def read_again(path: Root, job: Callable[[], T]) -> T:
    """The result of a job that reads an object and checks it.

    What comes from an object store may be damaged on the way: that is read once more before it is
    called damage. A disk is not asked twice.
    """
    try:
        return job()
    except DamageError:
        if isinstance(path, ObjectPath):
            return job()
        raise
