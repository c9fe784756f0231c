"""Ways to damage a cache, and to forge one whose every checksum is in order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdcache.manifest import digest
from kdcache.store import Cache
from kdcache.store.format.zarr_metadata import group_json, read_record

PLAN, COMPLETE = "commits/plan", "complete"


def files_of(root: Path) -> dict[str, bytes]:
    """Every object of a store, by key."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def copy_of(cache: Cache, folder: Path) -> Path:
    """A copy to damage."""
    assert isinstance(cache.path, Path)
    return Path(shutil.copytree(cache.path, folder / "copy.zarr"))


def flip(path: Path, bit: int) -> None:
    """Flip one bit, counted from the file's first and round its end."""
    data = bytearray(path.read_bytes())
    byte, shift = divmod(bit % (len(data) * 8), 8)
    data[byte] ^= 1 << shift
    path.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    """Exchange two files."""
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    one.write_bytes(second)
    other.write_bytes(first)


def write_record(root: Path, group: str, record: Mapping[str, Any]) -> None:
    """Write a record with the digest it needs, as an attacker would."""
    (root / group / "zarr.json").write_bytes(group_json(dict(record)))


def record_of(root: Path, group: str) -> dict[str, Any]:
    """The record of a group, to be changed."""
    found = read_record(root / group)
    assert found is not None
    copied: dict[str, Any] = json.loads(json.dumps(found))
    return copied


def forge_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and keep its copy, and both digests, in step."""
    manifest, plan = record_of(root, ""), record_of(root, PLAN)
    change(manifest)
    plan["manifest"] = manifest
    write_record(root, "", manifest)
    write_record(root, PLAN, plan)


def forge_plan(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the plan's commit says of objects, the manifest in step."""
    plan = record_of(root, PLAN)
    change(plan["objects"])
    manifest = {**record_of(root, ""), "contents": digest(plan["objects"])}
    write_record(root, PLAN, {**plan, "manifest": manifest})
    write_record(root, "", manifest)


def forge_commit(root: Path, part: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a part's commit, its attempt's name in step with its objects."""
    group = f"commits/{part:06d}"
    record = record_of(root, group)
    change(record)
    if isinstance(record.get("objects"), dict):
        record["attempt"] = digest(record["objects"])[:16]
    write_record(root, group, record)


def forge_completion(root: Path, parts: int) -> None:
    """Bring the record of completion in step with forged commits."""
    records = [record_of(root, f"commits/{part:06d}") for part in range(parts)]
    contents = digest([record["objects"] for record in records])
    record = {**record_of(root, COMPLETE), "contents": contents, "commits": digest(records)}
    write_record(root, COMPLETE, record)
