"""Make again what no teacher is needed for: the manifest, the plan's commit, metadata of arrays.

All of it follows from the rest; nothing is written that does not match a digest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from kdcache.errors import DamageError
from kdcache.manifest import NAMED, Json, digest
from kdcache.plans import Plan
from kdcache.store.contents import write_column, write_skeleton
from kdcache.store.create import PLAN_COMMIT, plan_commit
from kdcache.store.format.commit_log import plan_objects
from kdcache.store.format.manifest_schema import read_schema
from kdcache.store.format.zarr_metadata import group_json, read_record, require_record
from kdcache.store.io.check_object import object_fingerprint, object_problem
from kdcache.store.io.durable_writes import object_names, replace_synced, writing
from kdcache.store.io.object_path import Root
from kdcache.store.io.safe_paths import inside
from kdcache.store.planned import plan_layouts, spec_layouts

LATER = re.compile(r"zarr\.json|complete/.*|commits/(plan|\d+)/.*")
"""Objects that the plan's commit does not name, with the shards of signals."""


def restore_manifest(root: Root) -> None:
    """Write the manifest anew, if it is damaged, from its copy in the plan's commit."""
    if _record(root) is None:
        manifest = (_record(inside(root, PLAN_COMMIT).parent) or {}).get("manifest")
        if isinstance(manifest, dict):
            _replace(root, "zarr.json", group_json(manifest))


def _record(folder: Root) -> Json | None:
    try:
        return read_record(folder)
    except DamageError:
        return None


def restore_plan_commit(root: Root) -> None:
    """Write the plan's commit anew if it is damaged and all it names is sound.

    What is there is listed again; the manifest's digest tells whether that is what was.
    """
    manifest = require_record(root, "cache")
    try:
        plan_objects(root, manifest)
        return
    except DamageError:
        schema = read_schema(manifest, root)
        signals = tuple(f"{array.name}/c/" for array in schema.array_specs())
        newer = tuple(f"{name}/" for name in schema.newer_names())
    objects: dict[str, Json] = {}
    for key in object_names(root):
        if key.startswith(signals) or LATER.fullmatch(key):
            continue
        if key.startswith(newer) and "/c/" in key:
            continue
        fingerprint = object_fingerprint(key, inside(root, key).read_bytes())
        if fingerprint is not None:
            objects[key] = fingerprint
    objects = dict(sorted(objects.items()))
    if digest(objects) == manifest["contents"]:
        _replace(root, PLAN_COMMIT, group_json(plan_commit(manifest, objects)))


def restore_metadata(
    root: Root, keys: Collection[str], files: Mapping[str, bytes | Path] | None = None
) -> None:
    """Write damaged objects anew, as far as they can be made of the manifest and of `files`.

    A merged cache of an older format may hold arrays of a newer one: both ways are tried.
    """
    manifest = require_record(root, "cache")
    schema, left = read_schema(manifest, root), set(keys)
    objects = plan_objects(root, manifest)
    layouts = spec_layouts(schema.plan, schema.array_specs())
    new = manifest["format"] >= NAMED
    for named in (new, not new):
        if not left:
            return
        with TemporaryDirectory(prefix="kdcache-") as folder:
            fresh = Path(folder) / "store"
            write_skeleton(fresh, schema.plan, layouts, files or {}, named=named)
            left -= _put_sound(root, left & objects.keys(), fresh, objects)


def _put_sound(
    root: Root, keys: Collection[str], fresh: Path, objects: Mapping[str, Json]
) -> set[str]:
    """Put those objects in place that were made as they were committed; returns their keys."""
    sound = set()
    for key in keys:
        data = (fresh / key).read_bytes() if (fresh / key).is_file() else b""
        if object_problem(data, objects[key]) is None:
            _replace(root, key, data)
            sound.add(key)
    return sound


def restore_columns(root: Root, keys: Collection[str], plan: Plan) -> None:
    """Write damaged rows of the plan anew from the same plan, made again."""
    objects = plan_objects(root, require_record(root, "cache"))
    wanted = {key.rpartition("/c/")[0] for key in keys}
    with TemporaryDirectory(prefix="kdcache-") as folder:
        fresh = Path(folder)
        for layout in plan_layouts(plan):
            made = write_column(fresh, layout, plan) if layout.name in wanted else {}
            for key in made.keys() & keys:
                if made[key] == objects.get(key):
                    _replace(root, key, (fresh / key).read_bytes())


def _replace(root: Root, key: str, data: bytes) -> None:
    with writing(root):
        replace_synced(inside(root, key), data)
