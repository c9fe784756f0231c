"""Make again what no teacher is needed for: the plan's commit and the metadata of arrays.

Both follow from the manifest and from what is there; nothing is written that does not match a
digest of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from kdcache.errors import DamageError
from kdcache.manifest import Json, digest
from kdcache.store.blueprint import read_blueprint
from kdcache.store.checking import object_facts, object_problem
from kdcache.store.create import PLAN_COMMIT, signal_layouts, write_skeleton
from kdcache.store.files import replace_synced, writing
from kdcache.store.ledger import plan_objects
from kdcache.store.objects import Root
from kdcache.store.paths import inside
from kdcache.store.zarrs import group_json, require_record

LATER = re.compile(r"zarr\.json|complete/.*|commits/(plan|\d+)/.*")
"""Objects that the plan's commit does not name, with the shards of signals."""


def restore_plan_commit(root: Root) -> None:
    """Write the plan's commit anew if it is damaged and all it names is sound.

    What is there is listed again; the manifest's digest tells whether that is what was.
    """
    manifest = require_record(root, "cache")
    try:
        plan_objects(root, manifest)
        return
    except DamageError:
        signals = tuple(f"{name}/" for name in read_blueprint(manifest, root).signals)
    objects: dict[str, Json] = {}
    for path in sorted(root.rglob("*")):
        key = str(path.relative_to(root))
        shard = "/c/" in key and key.startswith(signals)
        if not path.is_file() or shard or LATER.fullmatch(key):
            continue
        facts = object_facts(key, inside(root, key).read_bytes())
        if facts is not None:
            objects[key] = facts
    objects = dict(sorted(objects.items()))
    if digest(objects) == manifest["contents"]:
        _replace(root, PLAN_COMMIT, group_json({"objects": objects}))


def restore_metadata(
    root: Root, keys: Collection[str], files: Mapping[str, bytes | Path] | None = None
) -> None:
    """Write damaged objects anew, as far as they can be made of the manifest and of `files`."""
    manifest = require_record(root, "cache")
    blueprint, objects = read_blueprint(manifest, root), plan_objects(root, manifest)
    assert blueprint.shape is not None
    layouts = signal_layouts(blueprint.plan, blueprint.signals, blueprint.shape)
    with TemporaryDirectory(prefix="kdcache-") as folder:
        fresh = Path(folder) / "store"
        write_skeleton(fresh, blueprint.plan, layouts, files or {})
        for key in keys:
            made = fresh / key
            if key in objects and made.is_file():
                data = made.read_bytes()
                if object_problem(data, objects[key]) is None:
                    _replace(root, key, data)


def _replace(root: Root, key: str, data: bytes) -> None:
    with writing(root):
        replace_synced(inside(root, key), data)
