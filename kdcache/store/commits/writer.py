"""Commit parts: stage whole shards, put the commit record if absent, publish by rename or copy.

Any number of writers need no lock. The record is the moment a part exists; publishing is idempotent
and anyone's to finish. A staging folder is named after its contents, so equal attempts are one.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from kdcache.errors import DamageError, IncompleteError
from kdcache.manifest import Json, digest
from kdcache.plans import Array
from kdcache.signals import Signal, merge
from kdcache.store.cache import Cache
from kdcache.store.format.commit_log import part_name, read_completion, sizes_of
from kdcache.store.format.compressed_reader import encode_rows
from kdcache.store.format.zarr_metadata import group_json, read_record
from kdcache.store.io.durable_writes import (
    Pieces,
    object_names,
    object_sizes,
    publish,
    put_if_absent,
    remove_tree,
    stage,
    writing,
)
from kdcache.store.io.fingerprints import shard_fingerprint
from kdcache.store.io.object_path import Root
from kdcache.store.io.safe_paths import inside


class Writer:
    """Adds parts to the cache at `path`, a folder or a place in an object store."""

    def __init__(self, path: Root) -> None:
        self.path = path
        self.cache = Cache(path)
        root = path.resolve() if isinstance(path, Path) else path
        self.staging: Root = root.with_name(f"{root.name}.staging")

    def write_part(
        self, part: int, arrays: Mapping[str, Array], fidelity: Json, forward: Json
    ) -> None:
        """Stage, commit and publish one part; `arrays` hold all its rows, padding included.

        `forward` is what the bytes of the same teacher's outputs hang on: batch size and device.
        """
        with writing(self.path):
            encoded = encode_part(self.cache, part, arrays)
            record = commit_record(self.cache, part, encoded, fidelity, forward)
            self._commit(part, record, encoded)
            self.publish(part)

    def _commit(self, part: int, record: Json, encoded: Mapping[str, Pieces]) -> None:
        staged = self._staged(part, record)
        commit = self.path / "commits" / part_name(part)
        try:
            stage(staged, encoded)
        except FileNotFoundError:
            if read_record(commit) is None:
                raise
            return  # a rival committed the part and cleared the staging
        scratch = self.staging / f"commit.{uuid.uuid4().hex}"
        if not put_if_absent(commit / "zarr.json", group_json(record), scratch):
            winner = read_record(commit)
            if winner is not None and winner["attempt"] != record["attempt"]:
                remove_tree(staged)

    def _staged(self, part: int, record: Json) -> Root:
        return self.staging / f"{part_name(part)}.{record['attempt']}"

    def publish(self, part: int) -> None:
        """Put the staged objects of a committed part in place, over whatever has their names."""
        record = self.cache.commit(part)
        staged = self._staged(part, record)
        for key, fingerprint in record["objects"].items():
            target = inside(self.path, key)
            try:
                publish(staged / key, target)
            except FileNotFoundError as error:
                if _there(target, fingerprint):
                    continue  # published before, or by a rival
                raise DamageError(
                    f"{target} is missing though part {part} is committed; `kdcache verify "
                    f"{self.path}` lists the damage, and removing "
                    f"{self.path / 'commits' / part_name(part)} lets `build` make the part again"
                ) from error
        remove_tree(staged)

    def republish(self) -> None:
        """Finish what an interrupted writer left: committed parts that are not all in place."""
        with writing(self.path):
            staged = {name.partition("/")[0] for name in object_names(self.staging)}
            sizes = object_sizes(self.path)  # one listing: a bucket is slow to ask about each
            for part in self.cache.committed:
                record = self.cache.commit(part)
                placed = sizes_of(record).items() <= sizes.items()
                if self._staged(part, record).name in staged or not placed:
                    self.publish(part)
            if staged and read_completion(self.path, self.cache.plan.parts) is not None:
                remove_tree(self.staging)  # a writer that was late has been killed

    def finalize(self) -> Json:
        """Mark the cache complete, with its fidelity; returns that record."""
        record = completion_record(self.cache, self.cache.signals)
        with writing(self.path):
            scratch = self.staging / f"complete.{uuid.uuid4().hex}"
            put_if_absent(self.path / "complete" / "zarr.json", group_json(record), scratch)
            remove_tree(self.staging)
        return record


def _there(path: Root, fingerprint: Json) -> bool:
    try:
        return bool(path.stat().st_size == fingerprint["bytes"])
    except FileNotFoundError:
        return False


def encode_part(cache: Cache, part: int, arrays: Mapping[str, Array]) -> dict[str, Pieces]:
    """The objects of a part, by key, from all rows of its arrays, padding included."""
    encoded: dict[str, Pieces] = {}
    for name, rows in arrays.items():
        layout = cache.layouts[name]
        for index, shard in enumerate(layout.part_shards(part)):
            first = index * layout.shard_rows
            shard_rows = rows[first : first + layout.shard_rows]
            encoded[layout.key(shard)] = encode_rows(shard_rows, layout)
    return encoded


def commit_record(
    cache: Cache, part: int, encoded: Mapping[str, Pieces], fidelity: Json, forward: Json
) -> Json:
    """The commit of a part that is made of the objects `encoded`."""
    objects = {key: shard_fingerprint(pieces) for key, pieces in encoded.items()}
    return {
        "part": part,
        "documents": len(cache.plan.part_docs(part)),
        "objects": objects,
        "attempt": digest(objects)[:16],
        "fidelity": fidelity,
        "forward": forward,
    }


def completion_record(cache: Cache, signals: Mapping[str, Signal]) -> Json:
    """The record that marks a cache complete; IncompleteError if parts are missing.

    `signals` go by the names they have in commits.
    """
    if cache.missing:
        raise IncompleteError(f"{cache.path} lacks {len(cache.missing)} of its parts")
    records = cache.commit_log.commits()
    stats = [record["fidelity"] for record in records]
    fidelity = {
        name: signal.summarise(merge([part[name] for part in stats if name in part]))
        for name, signal in signals.items()
    }
    return {
        "parts": len(records),
        "fidelity": fidelity,
        "contents": digest([record["objects"] for record in records]),
        "commits": digest(records),
    }
