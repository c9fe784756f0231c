"""Commit parts: stage whole shards, put the commit record if absent, publish by rename.

Any number of writers need no lock. The record is the moment a part exists; publishing is idempotent
and anyone's to finish. A staging folder is named after its contents, so equal attempts are one.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from kdcache.errors import DamageError, IncompleteError
from kdcache.manifest import Json, digest
from kdcache.plans import Array
from kdcache.signals import merge
from kdcache.store.facts import shard_facts
from kdcache.store.files import (
    publish,
    put_if_absent,
    remove_tree,
    sync_folder,
    write_synced,
    writing,
)
from kdcache.store.ledger import part_name
from kdcache.store.reader import Cache
from kdcache.store.shard import encode_shard
from kdcache.store.zarrs import group_json, read_record


class Writer:
    """Adds parts to the cache at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = Cache(path)
        root = path.resolve()
        self.staging = root.with_name(f"{root.name}.staging")

    def write_part(
        self, part: int, arrays: Mapping[str, Array], fidelity: Json, forward: Json
    ) -> None:
        """Stage, commit and publish one part; `arrays` hold all its rows, padding included.

        `forward` is what the bytes of the same teacher's outputs hang on: batch size and device.
        """
        with writing(self.path):
            attempt = self.staging / f"{part_name(part)}.{uuid.uuid4().hex}"
            objects: dict[str, Json] = {}
            for name, rows in arrays.items():
                objects.update(self._stage(attempt, part, name, rows))
            record = {
                "part": part,
                "documents": len(self.cache.plan.part_docs(part)),
                "objects": objects,
                "attempt": digest(objects)[:16],
                "fidelity": fidelity,
                "forward": forward,
            }
            self._commit(part, attempt, record)
            self.publish(part)

    def _stage(self, attempt: Path, part: int, name: str, rows: Array) -> dict[str, Json]:
        layout = self.cache.layouts[name]
        objects = {}
        for index, shard in enumerate(layout.part_shards(part)):
            first = index * layout.shard_rows
            pieces = encode_shard(rows[first : first + layout.shard_rows], layout.chunk_rows)
            write_synced(attempt / layout.key(shard), *pieces)
            objects[layout.key(shard)] = shard_facts(pieces)
        return objects

    def _commit(self, part: int, attempt: Path, record: Json) -> None:
        staged = self.staging / f"{part_name(part)}.{record['attempt']}"
        if staged.exists():
            remove_tree(attempt)
        else:
            os.rename(attempt, staged)
        sync_folder(self.staging)
        scratch = self.staging / f"commit.{uuid.uuid4().hex}"
        commit = self.path / "commits" / part_name(part)
        if not put_if_absent(commit / "zarr.json", group_json(record), scratch):
            winner = read_record(commit)
            if winner is not None and winner["attempt"] != record["attempt"]:
                remove_tree(staged)

    def publish(self, part: int) -> None:
        """Move the staged objects of a committed part into place; those there already stay."""
        record = read_record(self.path / "commits" / part_name(part))
        assert record is not None
        staged = self.staging / f"{part_name(part)}.{record['attempt']}"
        for key, facts in record["objects"].items():
            target = self.path / key
            if target.exists() and target.stat().st_size == facts["bytes"]:
                continue
            if not (staged / key).exists():
                raise DamageError(
                    f"{target} is missing though part {part} is committed; `kdcache verify "
                    f"{self.path}` lists the damage, and removing "
                    f"{self.path / 'commits' / part_name(part)} lets `build` make the part again"
                )
            publish(staged / key, target)
        remove_tree(staged)

    def republish(self) -> None:
        """Finish what an interrupted writer left: committed parts that are not all in place."""
        with writing(self.path):
            for part in self.cache.committed:
                self.publish(part)

    def finalize(self) -> Json:
        """Mark the cache complete, with its fidelity; returns that record."""
        cache = self.cache
        if cache.missing:
            raise IncompleteError(f"{self.path} lacks {len(cache.missing)} of its parts")
        records = [cache.commit(part) for part in range(cache.plan.parts)]
        stats = [record["fidelity"] for record in records]
        fidelity = {
            name: signal.summarise(merge([part[name] for part in stats if name in part]))
            for name, signal in cache.signals.items()
        }
        record = {
            "parts": len(records),
            "fidelity": fidelity,
            "contents": digest([record["objects"] for record in records]),
        }
        with writing(self.path):
            scratch = self.staging / f"complete.{uuid.uuid4().hex}"
            put_if_absent(self.path / "complete" / "zarr.json", group_json(record), scratch)
            remove_tree(self.staging)
        return record
