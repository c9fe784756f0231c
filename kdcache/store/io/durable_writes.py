"""Writing that survives a crash, on a disk or in an object store: an object is whole or not there.

An object store makes an object durable and whole in one request, so there the steps that a disk
needs, syncing and renaming, fall away.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kdcache.errors import CacheError
from kdcache.store.io.object_path import ObjectPath, Root, at_once

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


Pieces = Sequence[bytes | memoryview]
ABANDONED = 24 * 3600  # seconds without a change
RETRIES = 100  # of a step that others may undo; each of them does so once


@contextmanager
def writing(path: Root) -> Iterator[None]:
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


def require_writable(path: Path, *, file: bool = False) -> None:
    """Raise CacheError, before any work is done, if `path` can be no folder (or `file`) to write.

    Nothing is written: what only the disk itself knows shows when it is.
    """
    whole = above = os.path.abspath(path)
    while not os.path.exists(above):
        above = os.path.dirname(above)
    reason = 0
    if file and os.path.isdir(whole):
        reason = errno.EISDIR
    elif not os.path.isdir(above) and not (file and above == whole):
        reason = errno.ENOTDIR
    elif not os.access(above, os.W_OK):
        reason = errno.EROFS if os.statvfs(above).f_flag & os.ST_RDONLY else errno.EACCES
    if reason:
        raise CacheError(f"cannot write {path}: {REASONS[reason]}")


def occupied(path: Path) -> bool:
    """Whether something lies at `path` that a new folder there would replace."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def write_synced(path: Root, *pieces: bytes | memoryview) -> None:
    """Write a new object and wait until it is kept for good."""
    if isinstance(path, ObjectPath):
        path.write_bytes(b"".join(pieces))
        return
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


def replace_synced(path: Root, data: bytes) -> None:
    """Write an object, over one of that name if there is one; it is never seen half written."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_synced(fresh, data)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def put_if_absent(path: Root, data: bytes, scratch: Root | None = None) -> bool:
    """Create `path` with `data` unless it exists; False if it does, with other bytes or a rival's.

    A disk needs `scratch` on the way, a name of this writer's own on the same disk.
    """
    if isinstance(path, ObjectPath):
        return _create(path, data)
    assert isinstance(scratch, Path)
    for attempt in range(RETRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(scratch, data)
            os.link(scratch, path)
            break
        except FileExistsError:
            return False
        except FileNotFoundError:  # a writer that finished has cleared the folder of `scratch`
            if attempt == RETRIES - 1:
                raise
        finally:
            scratch.unlink(missing_ok=True)
    sync_folder(path.parent)
    sync_folder(path.parent.parent)
    return True


def _create(path: ObjectPath, data: bytes) -> bool:
    try:
        path.write_bytes(data, create=True)
    except FileExistsError:
        # Ours, if an answer was lost and the request repeated.
        return path.read_bytes() == data
    return True


def stage(folder: Root, objects: Mapping[str, Pieces]) -> None:
    """Write the objects of one attempt below `folder`, which is named after their contents.

    The folder of a disk appears whole. Objects appear one by one, the same whoever writes them.
    """
    if isinstance(folder, ObjectPath):
        at_once(lambda item: write_synced(folder / item[0], *item[1]), objects.items())
        return
    fresh = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    try:
        for key, pieces in objects.items():
            write_synced(fresh / key, *pieces)
        for inner, _, _ in os.walk(fresh):
            sync_folder(Path(inner))
        os.rename(fresh, folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    finally:
        remove_tree(fresh)
    sync_folder(folder.parent)


def publish(source: Root, target: Root) -> None:
    """Put a staged object in its place, for good; FileNotFoundError if it is not staged."""
    if isinstance(source, ObjectPath):
        assert isinstance(target, ObjectPath)
        source.copy_to(target)
        return
    assert isinstance(target, Path)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
    sync_folder(target.parent)


def object_names(root: Root) -> list[str]:
    """Names of all objects below, relative to `root`; none if it is not there."""
    return list(object_sizes(root))


def object_sizes(root: Root) -> dict[str, int]:
    """Bytes of all objects below, by name relative to `root`; none if it is not there."""
    if isinstance(root, ObjectPath):
        return root.sizes()
    found = {}
    for folder, _, names in os.walk(root):  # passes over what another writer moves away meanwhile
        for name in names:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                if path.is_file():
                    found[str(path.relative_to(root))] = path.stat().st_size
    return found


def remove_tree(path: Root) -> None:
    """Remove a folder and what is in it; one that is not there is fine."""
    if isinstance(path, ObjectPath):
        path.unlink_all()
        return
    try:
        shutil.rmtree(path, ignore_errors=True)
    except KeyboardInterrupt:  # what is half removed is of no use to anyone: first this, then stop
        shutil.rmtree(path, ignore_errors=True)
        raise


def sweep(folder: Path, pattern: str) -> None:
    """Remove folders that killed processes have left: those in which a day has changed nothing."""
    with suppress(OSError):
        for found in folder.glob(pattern):
            inside = [path.stat().st_mtime for path in (found, *found.rglob("*"))]
            if time.time() - max(inside) > ABANDONED:
                remove_tree(found)
