"""Bring committed objects from one store to another, each checked where it leaves and arrives.

An object that is there already and is what the commit says is left alone, so what was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdcache.errors import CacheError, DamageError, MismatchError
from kdcache.manifest import Json, require_same
from kdcache.progress import Progress
from kdcache.store.create import PLAN_COMMIT
from kdcache.store.format.zarr_metadata import group_json, read_record
from kdcache.store.io.check_object import object_problem
from kdcache.store.io.durable_writes import (
    object_names,
    publish,
    put_if_absent,
    remove_tree,
    write_synced,
    writing,
)
from kdcache.store.io.object_path import AT_ONCE, ObjectPath, Root, at_once
from kdcache.store.io.safe_paths import inside, read_again, read_regular

COMPLETE, MANIFEST = "complete/zarr.json", "zarr.json"


@dataclass(frozen=True, kw_only=True)
class Item:
    """An object to bring over: its key there, where it lies now, what its commit says of it."""

    key: str
    source: Root
    fingerprint: Json


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What was done: objects and bytes there now, and how many of them were written for it."""

    objects: int
    bytes: int
    written_objects: int
    written_bytes: int


def transfer(
    items: Sequence[Item], records: Mapping[str, Json], out: Root, label: str, progress: Progress
) -> Transfer:
    """Make the store at `out` of `items` and of `records`, by key: the commits and the manifest.

    The plan's commit claims the place first, and the manifest comes last: whoever can open the
    store finds all of it.

    Raises MismatchError or CacheError if another store, or anything else, is there; DamageError,
    naming the object, if one is not what was committed.
    """
    _require_free(out, records[MANIFEST])
    root = out.resolve() if isinstance(out, Path) else out
    staging = root.with_name(f"{root.name}.staging")
    total = sum(item.fingerprint["bytes"] for item in items)
    written: list[Item] = []
    with writing(out), progress.bar(label, unit="bytes", total=total) as advance:

        def done(result: tuple[Item, bool]) -> None:
            advance(result[0].fingerprint["bytes"])
            if result[1]:
                written.append(result[0])

        _put(out, PLAN_COMMIT, records[PLAN_COMMIT], staging)
        remote = any(isinstance(place, ObjectPath) for place in [out, *(i.source for i in items)])
        at_once(partial(_bring, out, staging), items, done, threads=AT_ONCE if remote else 1)
        for key in sorted(records, key=_rank):
            _put(out, key, records[key], staging)
        remove_tree(staging)
    return Transfer(
        objects=len(items),
        bytes=total,
        written_objects=len(written),
        written_bytes=sum(item.fingerprint["bytes"] for item in written),
    )


def _require_free(out: Root, manifest: Json) -> None:
    stored = read_record(out)
    if stored is not None:
        require_same(stored, manifest, str(out))
    elif object_names(out) and not (out / PLAN_COMMIT).is_file():
        raise CacheError(f"{out} exists and is not a kdcache {manifest['kind']}; choose another")


def _rank(key: str) -> tuple[bool, bool, str]:
    return key == MANIFEST, key == COMPLETE, key


def _put(out: Root, key: str, record: Json, staging: Root) -> None:
    path = inside(out, key)
    scratch = staging / f"record.{uuid.uuid4().hex}"
    if not put_if_absent(path, group_json(record), scratch) and read_record(path.parent) != record:
        raise MismatchError(
            f"{out} holds another plan or cache, or the beginning of one: {path} says something "
            "else; "
            "choose another"
        )


def _bring(out: Root, staging: Root, item: Item) -> tuple[Item, bool]:
    """Bring one object over, unless it is there; whether it was written."""
    target = inside(out, item.key)
    if _sound(target, item.fingerprint):
        return item, False
    try:
        data = read_again(item.source, lambda: _read(item.source, item.fingerprint))
    except FileNotFoundError as error:
        raise DamageError(f"{item.source} is missing; `kdcache verify` lists the damage") from error
    if isinstance(target, ObjectPath):
        target.write_bytes(data)
    else:
        fresh = staging / uuid.uuid4().hex
        write_synced(fresh, data)
        publish(fresh, target)
    if not _sound(target, item.fingerprint):
        raise DamageError(f"{target} is not what was written there a moment ago; check the disk")
    return item, True


def _sound(path: Root, fingerprint: Json) -> bool:
    try:
        read_again(path, lambda: _read(path, fingerprint))
    except (FileNotFoundError, DamageError):
        return False
    return True


def _read(path: Root, fingerprint: Json) -> bytes:
    """The bytes of an object; DamageError if they are not what its commit says."""
    data = read_regular(path, fingerprint["bytes"])
    problem = object_problem(data, fingerprint)
    if problem:
        raise DamageError(f"{path} is damaged: {problem}")
    return data
