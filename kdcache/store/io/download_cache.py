"""Whole shards of remote caches in a local folder of bounded size.

A copy is known by its URL and ETag, so an object that was replaced is fetched anew. Every copy is
checked chunk by chunk when it arrives and when a process first uses it; one that has gone bad on
the local disk is fetched again. The least recently used go first when the folder is full. Any
number of processes share the folder: a copy appears whole, by rename.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from kdcache.errors import CacheError, ConfigError, DamageError
from kdcache.manifest import digest
from kdcache.store.io.check_object import shard_problem
from kdcache.store.io.durable_writes import writing
from kdcache.store.io.object_path import ObjectPath, Root
from kdcache.store.io.safe_paths import read_again

FOLDER = "KDCACHE_FETCHED"
LIMIT = "KDCACHE_FETCHED_LIMIT"
DEFAULT_LIMIT = "50GB"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Fetched:
    """Copies in `folder`, of at most `limit` bytes together."""

    folder: Path
    limit: int
    checked: set[str] = field(default_factory=set, compare=False)

    def get(self, shard: ObjectPath) -> Path:
        """The local copy of a shard.

        Raises FileNotFoundError if there is no such shard, DamageError if it is damaged where it
        lies, CacheError if it cannot be kept.
        """
        status = shard.stat()
        name = digest([str(shard), *status])
        path = self.folder / name
        if self._sound(path, name):
            return path
        data = read_again(shard, lambda: _download(shard, status.st_size))
        self._keep(path, data, shard)
        self.checked.add(name)
        return path

    def _sound(self, path: Path, name: str) -> bool:
        """Whether a copy is there and good; it is the last to go from now on."""
        try:
            status = path.stat()
            if name not in self.checked and shard_problem(path.read_bytes()):
                return False
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # the reader knows it by mtime
        except FileNotFoundError:
            return False
        self.checked.add(name)
        return True

    def _keep(self, path: Path, data: bytes, shard: ObjectPath) -> None:
        if len(data) > self.limit:
            raise CacheError(
                f"{shard} has {len(data):,} bytes, and local copies may take {self.limit:,} "
                f"together: raise {LIMIT}"
            )
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._evict(self.limit - len(data))
            fresh = self.folder / f"{path.name}.{uuid.uuid4().hex}"
            try:
                fresh.write_bytes(data)
                os.replace(fresh, path)
            finally:
                fresh.unlink(missing_ok=True)

    def _evict(self, room: int) -> None:
        """Remove the least recently used copies until the rest take at most `room` bytes."""
        found = []
        for entry in os.scandir(self.folder):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # another process was faster
            found.append((status.st_atime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= room:
                break
            Path(path).unlink(missing_ok=True)
            total -= size


def _download(shard: ObjectPath, size: int) -> bytes:
    data = shard.read_bytes()
    if len(data) != size:
        raise CacheError(f"{shard} changed while it was read; run the same command again")
    problem = shard_problem(data)
    if problem:
        raise DamageError(f"{shard} is damaged: {problem}")
    return data


def open_file(path: Root) -> int:
    """A descriptor to read a file, or the local copy of a shard; OSError, and as `local_file`."""
    while True:
        copy = local_file(path)
        try:
            # O_NONBLOCK: a pipe in place of a file is found out, not waited for.
            return os.open(copy, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            if copy is path:
                raise
            continue  # another process has made room in the moment between


def local_file(path: Root) -> Path:
    """A file itself, or the local copy of a shard, in the folder that the environment names.

    KDCACHE_FETCHED is that folder, by default below XDG_CACHE_HOME, KDCACHE_FETCHED_LIMIT its size.
    """
    if isinstance(path, Path):
        return path
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = os.environ.get(FOLDER) or Path(base) / "kdcache" / "fetched"
    return _fetched(Path(folder), parse_bytes(os.environ.get(LIMIT, DEFAULT_LIMIT))).get(path)


@lru_cache
def _fetched(folder: Path, limit: int) -> Fetched:
    return Fetched(folder, limit)


def parse_bytes(text: str, what: str = LIMIT) -> int:
    """A size such as 500MB or 1.5TB, decimal units; ConfigError if it is none."""
    number = text.strip().upper().rstrip("KMGTB")
    unit = text.strip().upper()[len(number) :]
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"{what} takes a size such as 500MB or 50GB; got {text!r}")
    return size
