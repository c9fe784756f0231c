"""The commit log: what commits say each object is, checked before it is believed.

The manifest seals the digest of the plan's commit; every part's commit seals itself and may name no
object but those its layouts give. A shard's entry is its size and a SHA-256 over the crc32c's that
follow its chunks and its index, so a shard in the wrong place is known by reading four bytes a
chunk, and a chunk in the wrong place by its own crc32c.

Records of the first format lack what came later: a shard's digest, how rows were made, a copy of
the manifest and a seal on the commits. Their chunks' crc32c are checked all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdcache.errors import DamageError, IncompleteError
from kdcache.manifest import FIRST, Json, digest
from kdcache.store.format.array_reader import Layout
from kdcache.store.format.zarr_metadata import read_record
from kdcache.store.io.object_path import AT_ONCE, ObjectPath, Root, at_once
from kdcache.store.io.safe_paths import inside

SHA256 = re.compile("[0-9a-f]{64}")
KEY = re.compile(r"(?!.*(^|/)\.\.?(/|$))[^/\0\\]+(/[^/\0\\]+)*")


def part_name(part: int) -> str:
    """Name of a part's commit."""
    return f"{part:06d}"


def plan_objects(root: Root, manifest: Json) -> dict[str, Json]:
    """Objects that were there before the first part (plan, metadata, files), by key.

    Raises DamageError if the plan's commit is not the one the manifest seals.
    """
    where = inside(root, "commits/plan/zarr.json")
    record = read_record(where.parent)
    if record is None:
        raise DamageError(f"{where} is missing")
    old = manifest.get("format") == FIRST
    objects = _objects(record.get("objects"), where, old)
    copied = old or record.get("manifest") == manifest
    if digest(objects) != manifest.get("contents") or not copied:
        raise DamageError(f"{where} is damaged: it is not the manifest's")
    return objects


def read_completion(root: Root, parts: int, *, old: bool = False) -> Json | None:
    """The record that marks a cache complete; None if it is not, DamageError if it is unsound.

    `old` is whether the cache is of the first format.
    """
    where = inside(root, "complete/zarr.json")
    record = read_record(where.parent)
    if record is None:
        return None
    digests = ["contents"] if old else ["contents", "commits"]
    if not all(_is_digest(record.get(name)) for name in digests):
        raise DamageError(f"{where} is damaged: its digests are none")
    if record.get("parts") != parts or not _figures(record.get("fidelity")):
        raise DamageError(f"{where} is damaged: its parts or fidelity make no sense")
    return record


class CommitLog:
    """The commits of the parts of a store whose signal arrays have `layouts`.

    `unread` are names of arrays whose layout is not known: which shards they have only a commit
    tells. `old` is whether the store is of the first format.
    """

    def __init__(
        self,
        root: Root,
        layouts: Iterable[Layout],
        parts: int,
        *,
        unread: Iterable[str] = (),
        old: bool = False,
    ) -> None:
        self.root, self.layouts, self.parts, self.old = root, list(layouts), parts, old
        self.unread = tuple(f"{name}/c/" for name in unread)
        self._known: dict[int, Mapping[str, Json]] = {}

    def keys(self, part: int) -> list[str]:
        """Objects a part is made of, array by array."""
        return [layout.key(s) for layout in self.layouts for s in layout.part_shards(part)]

    def commit(self, part: int) -> Json:
        """The commit record of a part; IncompleteError if there is none, DamageError if unsound."""
        where = inside(self.root, f"commits/{part_name(part)}/zarr.json")
        record = read_record(where.parent)
        if record is None:
            raise IncompleteError(f"{self.root}: part {part} is not committed")
        objects = _objects(record.get("objects"), where, self.old)
        if record.get("part") != part:
            raise DamageError(f"{where} is damaged: it is the commit of part {record.get('part')}")
        if {key for key in objects if not key.startswith(self.unread)} != set(self.keys(part)):
            raise DamageError(f"{where} is damaged: its objects are not those of part {part}")
        if record.get("attempt") != digest(objects)[:16] or not _sums(record.get("fidelity")):
            raise DamageError(f"{where} is damaged: its attempt or fidelity makes no sense")
        if not self.old and not _ways(record):
            raise DamageError(f"{where} is damaged: how its rows were made makes no sense")
        return record

    def commits(self) -> list[Json]:
        """The commits of all parts, asked of an object store several at a time; as `commit`."""
        found: list[Json] = []
        threads = AT_ONCE if isinstance(self.root, ObjectPath) else 1
        at_once(self.commit, range(self.parts), found.append, threads=threads)
        return found

    def require_commits(self, completion: Json) -> None:
        """DamageError unless the commits are those that a finished cache was finished with."""
        problem = self.completion_problem(completion, self.commits())
        if problem:
            raise DamageError(f"{self.root / 'complete' / 'zarr.json'} is damaged: {problem}")

    def completion_problem(self, completion: Json, commits: Iterable[Json]) -> str | None:
        """What is wrong if a cache with these commits was finished so; None if nothing is."""
        if self.old:
            sealed = digest([record["objects"] for record in commits]) == completion["contents"]
        else:
            sealed = digest(list(commits)) == completion["commits"]
        return None if sealed else "the commits are not those the cache was completed with"

    def fingerprint(self, part: int, key: str) -> Json:
        """What the commit of its part says of an object; the record is read once."""
        if part not in self._known:
            self._known[part] = self.commit(part)["objects"]
        fingerprint: Json = self._known[part][key]
        return fingerprint


def sizes_of(commit: Json) -> dict[str, int]:
    """Bytes of the objects that a commit names, by key."""
    return {key: fingerprint["bytes"] for key, fingerprint in commit["objects"].items()}


@dataclass(frozen=True)
class PlanFingerprints:
    """The commit log of the plan's own arrays and files: `Fingerprint` that can be pickled."""

    objects: Mapping[str, Json]
    root: Root

    def __call__(self, part: int, key: str) -> Json:
        """What was committed of an object; DamageError if it is in no commit."""
        if key not in self.objects:
            raise DamageError(f"{self.root / key} is in no commit: it is not of this store")
        return self.objects[key]


def _objects(found: Any, where: Root, old: bool) -> dict[str, Json]:
    if not isinstance(found, dict) or not all(
        KEY.fullmatch(key) and isinstance(fingerprint, dict) and _sound(key, fingerprint, old)
        for key, fingerprint in found.items()
    ):
        raise DamageError(f"{where} is damaged: its list of objects makes no sense")
    return found


def _sound(key: str, fingerprint: Json, old: bool) -> bool:
    size = fingerprint.get("bytes")
    if old or key.rpartition("/")[2] == "zarr.json":
        known = type(fingerprint.get("crc32c")) is int
    else:
        known = _is_digest(fingerprint.get("chunks_sha256"))
    return type(size) is int and size >= 0 and known


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and SHA256.fullmatch(text) is not None


def _figures(fidelity: Any, depth: int = 3) -> bool:
    """Whether these are numbers by signal and name, some of them by layer as well."""
    if isinstance(fidelity, dict):
        return depth > 0 and all(_figures(inner, depth - 1) for inner in fidelity.values())
    return depth < 2 and type(fidelity) in (int, float)


def _ways(record: Json) -> bool:
    """Whether a commit says how the teacher, or every teacher, was run."""
    ways = record.get("forwards", [])
    return isinstance(ways, list) and all(map(_way, [record.get("forward"), *ways]))


def _way(forward: Any) -> bool:
    if not isinstance(forward, dict):
        return False
    tokens, device = forward.get("batch_tokens"), forward.get("device")
    return type(tokens) is int and 0 < tokens < 2**62 and isinstance(device, str)


def _sums(fidelity: Any) -> bool:
    """Whether these are finite sums by signal and name."""
    return isinstance(fidelity, dict) and all(
        isinstance(stats, dict)
        and all(type(v) in (int, float) and -1e300 < v < 1e300 for v in stats.values())
        for stats in fidelity.values()
    )
