"""Copy a plan or a cache, from and to folders and object stores."""

from __future__ import annotations

from kdcache.errors import CacheError
from kdcache.maintenance.transfer import COMPLETE, MANIFEST, Item, Transfer, transfer
from kdcache.manifest import Json
from kdcache.progress import Shown, short, shown
from kdcache.store.cache import Cache
from kdcache.store.create import PLAN_COMMIT
from kdcache.store.format.commit_log import part_name, plan_objects
from kdcache.store.format.zarr_metadata import read_record
from kdcache.store.io.object_path import Place, Root, locate


def copy(source: Place, out: Place, *, progress: Shown = None) -> Transfer:
    """Copy the plan or cache at `source` to `out`; either is a folder or a URL.

    Every object is checked against its commit, by size and checksums, when it is read and again
    where it was written. A copy that was interrupted goes on where it stopped when it is started
    again. Of a cache that is still being built the committed parts are copied; `build` can go on
    in the copy, and copying again adds what is new.

    Raises:
        CacheError: there is nothing to copy, or something else at `out`.
        DamageError: an object is not what was committed.
    """
    progress = shown(progress)
    root, target = locate(source), locate(out)
    manifest = read_record(root)
    if manifest is None:
        raise CacheError(f"{root} is neither a plan nor a cache: it holds no zarr.json")
    if str(root) == str(target):
        raise CacheError(f"{root} cannot be copied onto itself; choose another place")
    objects = dict(plan_objects(root, manifest))
    records: dict[str, Json] = {MANIFEST: manifest}
    records[PLAN_COMMIT] = read_record(root / "commits" / "plan") or {}
    if manifest["kind"] == "cache":
        cache = Cache(root)
        for part in cache.committed:
            record = cache.commit(part)
            records[f"commits/{part_name(part)}/zarr.json"] = record
            objects |= record["objects"]
        if cache.completion is not None:
            records[COMPLETE] = cache.completion
    return transfer(
        _items(root, objects), records, target, f"copying {short(str(source))}", progress
    )


def _items(root: Root, objects: Json) -> list[Item]:
    return [
        Item(key=key, source=root / key, fingerprint=fingerprint)
        for key, fingerprint in objects.items()
    ]
