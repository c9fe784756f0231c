"""Create a plan or an empty cache: everything known before the teacher runs, in one rename."""

from __future__ import annotations

import errno
import glob
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from kdcache.errors import CacheError
from kdcache.manifest import FIRST, NAMED, Json, digest, require_same
from kdcache.plans import Plan
from kdcache.plans.identity import comparable_teachers, nameless
from kdcache.signals import ArraySpec
from kdcache.store.contents import write_column, write_skeleton
from kdcache.store.format.array_reader import Layout
from kdcache.store.format.manifest_schema import read_schema
from kdcache.store.format.zarr_metadata import group_json, read_record
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
from kdcache.store.io.object_path import ObjectPath, Place, Root, at_once, locate
from kdcache.store.planned import plan_layouts, plan_record

PLAN_COMMIT = "commits/plan/zarr.json"


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
        # In this order: of a store that is begun meanwhile the plan's commit is there first.
        if path.is_dir() and not (path / PLAN_COMMIT).is_file():
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
