"""Create a plan or an empty cache: everything known before the teacher runs, in one rename."""

from __future__ import annotations

import errno
import glob
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from kdcache.errors import CacheError
from kdcache.manifest import FIRST, FORMAT, NAMED, Json, digest, require_same
from kdcache.plans import Array, Column, Plan
from kdcache.plans.identity import comparable_teachers, nameless
from kdcache.signals import ArraySpec, ModelSizes, Signal, given_by, named_arrays, to_record
from kdcache.store.format.array_reader import Layout, encode_shard, plan_layout
from kdcache.store.format.manifest_schema import plan_specs, read_schema
from kdcache.store.format.zarr_metadata import create_arrays, create_group, group_json, read_record
from kdcache.store.io.checksums import crc
from kdcache.store.io.durable_writes import (
    object_names,
    occupied,
    put_if_absent,
    remove_tree,
    sweep,
    sync_folder,
    write_synced,
    writing,
)
from kdcache.store.io.fingerprints import shard_fingerprint
from kdcache.store.io.object_path import ObjectPath, Place, Root, at_once, locate

FILE_UNIT = 4096
FILE_CHUNK = 2**20
PLAN_COMMIT = "commits/plan/zarr.json"


def plan_record(plan: Plan) -> Json:
    """The manifest of a plan."""
    return {
        "format": FORMAT,
        "kind": "plan",
        "plan": {
            "sha256": plan.sha256 if plan.format >= NAMED else plan.sha256_in(FORMAT),
            "parts": plan.parts,
            "rows": plan.stored_rows,
            "documents": plan.documents,
            "tokens": plan.tokens,
            "masked": plan.selected,
            "config": plan.config.to_json(),
        },
    }


def cache_record(
    plan: Plan, *, teacher: Json, shape: ModelSizes, signals: Mapping[str, Signal], software: Json
) -> Json:
    """The manifest of a cache: the plan, the teacher's fingerprint and every signal's settings."""
    return {
        **plan_record(plan),
        "kind": "cache",
        "teacher": teacher,
        "shape": shape.to_json(given_by(signals.values())),
        "signals": {name: to_record(name, signal) for name, signal in signals.items()},
        "software": software,
    }


def signal_layouts(
    plan: Plan, signals: Mapping[str, Signal], shape: ModelSizes
) -> list[tuple[Layout, ArraySpec]]:
    """Layout of every signal array of a cache, exact before the teacher runs."""
    return spec_layouts(plan, named_arrays(signals, plan.task, shape))


def spec_layouts(plan: Plan, specs: Iterable[ArraySpec]) -> list[tuple[Layout, ArraySpec]]:
    """Layout of every array that `specs` name."""
    return [(_layout(plan, spec), spec) for spec in specs]


def plan_layouts(plan: Plan) -> list[Layout]:
    """Layout of every array of the plan."""
    return [_layout(plan, spec) for spec in plan_specs(plan)]


def _layout(plan: Plan, spec: ArraySpec) -> Layout:
    return plan_layout(
        spec.name,
        spec.dtype,
        spec.row_shape,
        part_rows=plan.part_rows(spec.space),
        chunk_rows=spec.chunk_rows,
        parts=plan.parts,
        packing=spec.packing,
        dims=spec.dims,
    )


def write_plan(path: Place, plan: Plan) -> None:
    """Write a plan as a Zarr group; MismatchError if the place holds a different one."""
    create(locate(path), plan_record(plan), plan)


def create(
    path: Root,
    record: Json,
    plan: Plan,
    signals: Sequence[tuple[Layout, ArraySpec]] = (),
    files: Mapping[str, bytes | Path] | None = None,
) -> bool:
    """Make the store at `path` unless the same one is there already; True if it was made.

    `files` (a tokenizer, a configuration, weights) are kept as uint8 arrays under `files/`.

    Raises MismatchError if `path` holds another plan or cache, CacheError if it holds anything
    else or cannot be written.
    """
    stored = read_record(path)
    if stored is not None:
        read_schema(stored, path)
        require_same(*_comparable(stored, _as_of(stored, record, plan)), str(path))
        return False
    make = _upload if isinstance(path, ObjectPath) else _rename
    made = make(
        path, record["kind"], lambda fresh: _fill(fresh, record, plan, signals, files or {})
    )
    # Where another process was faster, what it made is looked at as if it had always been there.
    return made or create(path, record, plan, signals, files)


def _rename(path: Root, kind: str, fill: Callable[[Path], None]) -> bool:
    """Make a store in a folder beside its own, which then takes its place; False if it is taken."""
    assert isinstance(path, Path)
    with writing(path):
        if occupied(path):
            raise CacheError(f"{path} exists and is not a kdcache {kind}; choose another")
    root = path.resolve()  # a link to an empty folder stays one
    if root == Path.cwd():
        raise CacheError(f"{path} is the current folder; choose a folder in it or beside it")
    fresh = root.with_name(f".{root.name}.{uuid.uuid4().hex}.creating")
    with writing(path):
        fresh.parent.mkdir(parents=True, exist_ok=True)
        sweep(fresh.parent, f".{glob.escape(root.name)}.*.creating")
        try:
            fill(fresh)
            os.rename(fresh, root)
            sync_folder(root.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        finally:
            remove_tree(fresh)
    return True


def _upload(path: Root, kind: str, fill: Callable[[Path], None]) -> bool:
    """Make a store in a temporary folder and put it where the plan's commit, put first, claims.

    Whoever would write the same may help or take over; the manifest comes last.
    """
    with writing(path), TemporaryDirectory(prefix="kdcache-") as scratch:
        fresh = Path(scratch) / "store"
        fill(fresh)
        if not (path / PLAN_COMMIT).is_file() and path.is_dir():
            raise CacheError(f"{path} exists and is not a kdcache {kind}; choose another")
        ours = read_record((fresh / PLAN_COMMIT).parent) or {}
        put_if_absent(path / PLAN_COMMIT, group_json(ours))
        claim = read_record((path / PLAN_COMMIT).parent) or {}
        if not _claimed_alike(claim, ours, path):
            raise CacheError(
                f"{path} holds the beginning of another plan or cache; finish that one with the "
                "command that began it, or choose another"
            )
        left = [name for name in object_names(fresh) if name not in (PLAN_COMMIT, "zarr.json")]
        at_once(lambda name: write_synced(path / name, (fresh / name).read_bytes()), left)
        return put_if_absent(path / "zarr.json", group_json(claim["manifest"]))


def _claimed_alike(claim: Json, ours: Json, path: Root) -> bool:
    manifest = claim.get("manifest", {})
    read_schema(manifest, path)
    there, here = _comparable(manifest, ours["manifest"])
    return claim.get("objects") == ours["objects"] and there == here


def _as_of(stored: Json, record: Json, plan: Plan) -> Json:
    """A manifest as a store of the stored one's format would have it, if it can be added to."""
    if not FIRST < stored["format"] < NAMED:
        return record
    name = stored["plan"]["config"]["tokenizer"]["name"]
    table = {**record["plan"], "sha256": plan.sha256_in(stored["format"], name)}
    return {**record, "format": stored["format"], "plan": table}


def _comparable(stored: Json, asked: Json) -> tuple[Json, Json]:
    """What of two manifests must agree: all but the digest of what was written, and names and
    places of the teacher and the tokenizer.
    """
    tables = tuple(
        {name: value for name, value in record.items() if name != "contents"}
        for record in (stored, asked)
    )
    if all("teacher" in table for table in tables):
        tables[0]["teacher"], tables[1]["teacher"] = comparable_teachers(
            stored["teacher"], asked["teacher"]
        )
    for table in tables:
        if "plan" in table:
            table["plan"] = nameless(table["plan"])
    return tables[0], tables[1]


def write_skeleton(
    root: Path,
    plan: Plan,
    signals: Sequence[tuple[Layout, ArraySpec]],
    files: Mapping[str, bytes | Path],
    *,
    named: bool = True,
) -> dict[str, Json]:
    """Write all that goes before the plan's rows: groups, arrays without rows, and files.

    `named` is whether dimensions have names. Returns what a commit says of the files' shards.
    """
    create_group(root, {})
    create_arrays(root, [(layout, {}) for layout in plan_layouts(plan)], named=named)
    create_arrays(root, [(layout, spec.attributes) for layout, spec in signals], named=named)
    objects: dict[str, Json] = {}
    for name, content in files.items():
        objects |= _write_file(root, name, content, named)
    create_group(root / "commits", {})
    return objects


def _fill(
    root: Path,
    record: Json,
    plan: Plan,
    signals: Sequence[tuple[Layout, ArraySpec]],
    files: Mapping[str, bytes | Path],
) -> None:
    objects = write_skeleton(root, plan, signals, files)
    for layout in plan_layouts(plan):
        objects |= write_column(root, layout, plan)
    for node in root.rglob("zarr.json"):
        if node != root / "zarr.json":
            data = node.read_bytes()
            objects[str(node.relative_to(root))] = {"bytes": len(data), "crc32c": crc(data)}
    objects = dict(sorted(objects.items()))
    manifest = {**record, "contents": digest(objects)}
    write_synced(root / PLAN_COMMIT, group_json(plan_commit(manifest, objects)))
    (root / "zarr.json").unlink()
    write_synced(root / "zarr.json", group_json(manifest))


def plan_commit(manifest: Json, objects: Mapping[str, Json]) -> Json:
    """The record of all that is there before the first part.

    Each of manifest and commit holds what it takes to make the other again.
    """
    return {"objects": dict(objects), "manifest": manifest}


def _column(plan: Plan, array: str) -> Column | Array:
    name = array.removeprefix("plan/")
    return plan.per_document[name] if name in plan.per_document else plan.columns[name]


def write_column(root: Path, layout: Layout, plan: Plan) -> dict[str, Json]:
    """Write the shards of one array of a plan; returns what a commit says of them."""
    rows, objects = _column(plan, layout.name), {}
    for shard in range(layout.shape[0] // layout.shard_rows):
        start = shard * layout.shard_rows
        data = np.asarray(rows[start : start + layout.shard_rows])
        pieces = encode_shard(data, layout.chunk_rows)
        write_synced(root / layout.key(shard), *pieces)
        objects[layout.key(shard)] = shard_fingerprint(pieces)
    return objects


def _write_file(root: Path, name: str, content: bytes | Path, named: bool) -> dict[str, Json]:
    data: Array = (
        np.frombuffer(content, np.uint8)
        if isinstance(content, bytes)
        else np.memmap(content, np.uint8, mode="r")
    )
    unit = FILE_UNIT if len(data) <= FILE_CHUNK else FILE_CHUNK
    rows = -(-len(data) // unit) * unit
    layout = plan_layout(
        f"files/{name}",
        "uint8",
        (),
        part_rows=rows,
        chunk_rows=FILE_CHUNK,
        parts=1,
        dims=(f"byte_of_{name.rpartition('/')[2]}",),
    )
    create_arrays(root, [(layout, {"bytes": len(data)})], named=named)
    objects = {}
    for shard in range(rows // layout.shard_rows):
        start = shard * layout.shard_rows
        piece = np.zeros(layout.shard_rows, np.uint8)
        block = data[start : start + layout.shard_rows]
        piece[: len(block)] = block
        pieces = encode_shard(piece, layout.chunk_rows)
        write_synced(root / layout.key(shard), *pieces)
        objects[layout.key(shard)] = shard_fingerprint(pieces)
    return objects
