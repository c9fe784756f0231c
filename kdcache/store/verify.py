"""Check a cache against what was committed: sizes and digests, or every byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from kdcache.errors import CacheError, DamageError
from kdcache.manifest import Json, digest
from kdcache.progress import Progress, quiet
from kdcache.store.reader import Cache, part_name
from kdcache.store.shard import ArrayReader, crc
from kdcache.store.zarrs import read_layout, read_record, require_record


def verify(path: str | Path, *, full: bool = False, progress: Progress = quiet) -> list[str]:
    """Problems of the cache at `path`, each naming the object; empty if there are none.

    Quick: every committed object is there with its size, and all records match their digests.
    `full` also reads every byte: each object's crc32c, each shard's index and inner chunks.

    Raises CacheError if there is no cache at `path`.
    """
    root = Path(path)
    if not root.is_dir():
        raise CacheError(f"no such cache: {root}")
    problems: list[str] = []
    try:
        manifest = require_record(root, "cache")
        objects = _objects(root, manifest, problems)
    except DamageError as error:
        return [str(error)]
    with progress.bar("verifying", unit="objects", total=len(objects)) as advance:
        for key, facts in objects.items():
            problems.extend(_check(root, key, facts, full))
            advance(1)
    if not problems:
        problems.extend(_check_shards(root) if full else _open(root))
    return problems


def _objects(root: Path, manifest: Json, problems: list[str]) -> dict[str, Json]:
    """Every object some commit names; problems with the commits themselves are noted."""
    found: dict[str, Json] = {}
    parts = manifest["plan"]["parts"]
    missing = 0
    for name in ["plan", *map(part_name, range(parts))]:
        try:
            record = read_record(root / "commits" / name)
        except DamageError as error:
            problems.append(str(error))
            continue
        if record is None and name != "plan":
            missing += 1
        elif record is None:
            problems.append(f"{root}/commits/plan/zarr.json is missing")
        else:
            found.update(record["objects"])
            if name == "plan" and digest(record["objects"]) != manifest["contents"]:
                problems.append(f"{root}/commits/plan/zarr.json is not the manifest's")
    if missing:
        problems.append(f"{root} is incomplete: {missing} of {parts} parts are not committed")
    return found


def _check(root: Path, key: str, facts: Json, full: bool) -> Iterator[str]:
    path = root / key
    if not path.is_file():
        yield f"{path} is missing"
    elif path.stat().st_size != facts["bytes"]:
        yield f"{path}: expected {facts['bytes']} bytes, found {path.stat().st_size}"
    elif (full or path.name == "zarr.json") and crc(path.read_bytes()) != facts["crc32c"]:
        yield f"{path} is damaged: its crc32c does not match its commit"


def _open(root: Path) -> list[str]:
    try:
        cache = Cache(root)
    except (CacheError, json.JSONDecodeError) as error:
        return [str(error)]
    if not cache.complete:
        return [f"{root} is not finished: run the same `kdcache build` again"]
    return []


def _check_shards(root: Path) -> list[str]:
    problems = _open(root)
    for node in sorted(root.rglob("zarr.json")):
        name = str(node.parent.relative_to(root))
        if json.loads(node.read_bytes())["node_type"] != "array":
            continue
        parts = 1 if name.startswith("files/") else require_record(root, "cache")["plan"]["parts"]
        reader = ArrayReader(root, read_layout(root, name, parts))
        for shard in range(reader.layout.shape[0] // reader.layout.shard_rows):
            try:
                reader.check_shard(shard)
            except CacheError as error:
                problems.append(str(error))
    return problems
