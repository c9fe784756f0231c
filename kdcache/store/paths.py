"""Where an object of a store lies, and no further: links may not lead a reader elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kdcache.errors import DamageError


def inside(root: Path, key: str) -> Path:
    """The path of an object; DamageError if links lead from it out of the store.

    `root` itself may be a link: its user has chosen it.
    """
    path = root / key
    found = os.path.realpath(path)
    if not found.startswith(os.path.join(os.path.realpath(root), "")):
        raise DamageError(
            f"{path} leads out of the cache, to {found}; a cache keeps no links: copy it again "
            "with its links followed (cp -rL)"
        )
    return path


def read_regular(path: Path, limit: int) -> bytes:
    """All bytes of a file; OSError if it cannot be read, DamageError beyond `limit` bytes.

    Pipes and devices, which could keep a reader waiting or never end, are refused.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise DamageError(f"{path} is damaged: it is no file")
        if facts.st_size > limit:
            raise DamageError(
                f"{path} is damaged: {facts.st_size} bytes; {limit} at most can belong here"
            )
        return file.read()
