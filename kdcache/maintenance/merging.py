"""Merge caches of one plan: what was asked of a teacher later, or of another teacher, side by side.

A manifest has one main teacher. Signals of the same teacher join it; outputs of another teacher
become a teacher with a folder and a table of its own (docs/decisions/0009).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from kdcache.errors import ConfigError, MismatchError
from kdcache.maintenance.merge_sources import Source, below, joined_signals, sources_of
from kdcache.maintenance.transfer import COMPLETE, MANIFEST, Item, Transfer, transfer
from kdcache.manifest import Json, brief, differences, digest, require_current
from kdcache.plans.identity import FUNCTION, has_configuration, nameless, say_unvouched
from kdcache.progress import Shown, short, shown
from kdcache.signals import merge as add_up
from kdcache.signals import to_record
from kdcache.store.cache import Cache
from kdcache.store.create import PLAN_COMMIT, plan_commit
from kdcache.store.format.commit_log import part_name
from kdcache.store.format.manifest_schema import plan_specs
from kdcache.store.io.object_path import Place, locate

TABLE = ("teacher", "shape", "signals", "software")
PLAN_ROWS = re.compile("(plan/.*|tokens)/c/")
EMPTY = "commits/zarr.json"  # a group without attributes, as any


def merge(sources: Sequence[Place], out: Place, *, progress: Shown = None) -> Transfer:
    """Write a cache to `out` that holds what the complete caches `sources` of one plan hold.

    Signals of the teacher of the first cache are its signals. Those of one name become one signal
    if they differ in their layers alone, and have none in common. Another teacher's are seen with
    `open_cache(out, teacher=NAME)`, where NAME is the teacher's name. Every object is checked on
    both sides, and an interrupted merge goes on, as in `copy`.

    Caches of the second format and of the third make one of the second.

    Raises:
        MismatchError: the plans differ, or teachers with the same weights in their configurations;
            the field is named.
        ConfigError: two caches hold signals of one name and teacher that are not layers of one.
        CacheError: a signal that only a newer version knows, or something else at `out`.
        IncompleteError: a cache lacks parts.
        DamageError: an object is not what was committed.
    """
    progress = shown(progress)
    given = [sources] if isinstance(sources, Place) else list(sources)
    if len(given) < 2:
        raise ConfigError(f"merge takes two caches or more, and the new one; got {len(given)}")
    caches = [cache for source in given for cache in _views(source)]
    for cache in caches:
        for name in cache.newer:
            cache.signal(name)  # which refuses: not all of it is understood
    for cache in caches[1:]:
        _require_one_plan(caches[0], cache)
    shares = sources_of(caches)
    say_unvouched(progress, ((cache.path, cache.manifest["teacher"]) for cache in caches))
    items = _plan_items(caches[0], shares)
    objects = {key: item.fingerprint for key, item in items.items()}
    manifest = _manifest(shares, objects)
    records: dict[str, Json] = {
        MANIFEST: manifest,
        PLAN_COMMIT: plan_commit(manifest, objects),
    }
    everything, parts = list(items.values()), []
    for part in range(caches[0].plan.parts):
        shards = [item for share in shares for item in share.of_part(part)]
        parts.append(_part_record(shares, part, shards))
        records[f"commits/{part_name(part)}/zarr.json"] = parts[-1]
        everything += shards
    records[COMPLETE] = _completion(shares, parts)
    return transfer(everything, records, locate(out), f"merging into {short(str(out))}", progress)


def _views(source: Place) -> Iterator[Cache]:
    """A cache as each of its teachers."""
    first = Cache(locate(source))
    require_current(first.manifest, str(first.path))
    first.require_complete()
    yield first
    yield from (Cache(first.path, teacher=name) for name in first.teachers)


def _require_one_plan(first: Cache, other: Cache) -> None:
    found = differences(_plan_table(first), _plan_table(other))
    if found:
        name, have, want = found[0]
        raise MismatchError(
            f"{other.path} is of another plan than {first.path}: plan.{brief(name)} is "
            f"{brief(want)} there and {brief(have)} here; build both from one plan (`kdcache plan`)"
        )


def _plan_table(cache: Cache) -> Json:
    """A cache's plan with the digest of its rows: each format has a digest of its own."""
    rows = {key: fingerprint for key, fingerprint in cache.objects.items() if PLAN_ROWS.match(key)}
    return {**nameless(cache.manifest["plan"]), "sha256": digest(rows)}


def _plan_items(first: Cache, sources: Sequence[Source]) -> dict[str, Item]:
    """All that goes before the first part, by key: plan, metadata, files, and groups above them."""
    found = {}
    for spec in plan_specs(first.plan):
        found.update({item.key: item for item in below(first, spec.name, spec.name)})
    for source in sources:
        for item in source.before_parts():
            found.setdefault(item.key, item)  # a tokenizer comes once
    arrays = {key.removesuffix("/zarr.json") for key in found if key.endswith("/zarr.json")}
    groups = {str(above) for name in arrays for above in PurePosixPath(name).parents} - {"."}
    for group in {*groups, "commits"}:
        node = Item(
            key=f"{group}/zarr.json", source=first.path / EMPTY, fingerprint=first.objects[EMPTY]
        )
        found[node.key] = node
    return dict(sorted(found.items()))


def _manifest(sources: Sequence[Source], objects: Json) -> Json:
    oldest = min((s.cache.manifest for s in sources), key=lambda known: known["format"])
    tables: dict[str, Json] = {}
    joined = joined_signals(sources)
    for source in sources:
        theirs = {name: source.cache.manifest[name] for name in TABLE}
        table = tables.setdefault(source.prefix, {**theirs, "signals": {}})
        table["signals"].update(theirs["signals"])
        for name, signal in joined.items():
            if name.rpartition("/")[0] == source.prefix.rstrip("/"):
                own = name.rpartition("/")[2]
                table["signals"][own] = to_record(own, signal)
        table["shape"] = {**table["shape"], **theirs["shape"]}  # each tells what its signals need
        if not has_configuration(theirs["teacher"]):  # what one of them lacks, nobody vouches for
            known = {key: value for key, value in table["teacher"].items() if key not in FUNCTION}
            table["teacher"] = known
    teachers = {PurePosixPath(prefix).name: table for prefix, table in tables.items() if prefix}
    return {
        **{name: oldest[name] for name in ("format", "kind", "plan")},
        **tables[""],
        **({"teachers": teachers} if teachers else {}),
        "merged": [build for source in sources for build in source.builds(joined)],
        "contents": digest(objects),
    }


def joined_sums(builds: Iterable[Mapping[str, Json]]) -> Json:
    """Sums by signal of several builds; of a signal that some have layers of, those of all."""
    found: dict[str, Json] = {}
    for sums in builds:
        for name, stats in sums.items():
            known = found.get(name)  # sorted, for builds may name their layers in any order
            found[name] = stats if known is None else dict(sorted({**known, **stats}.items()))
    return found


def _part_record(sources: Sequence[Source], part: int, items: Sequence[Item]) -> Json:
    commits = [source.cache.commit(part) for source in sources]
    fidelity = joined_sums(
        {n: commit["fidelity"][t] for n, t in source.signals.items() if t in commit["fidelity"]}
        for source, commit in zip(sources, commits, strict=True)
    )
    forwards = [
        forward
        for source, commit in zip(sources, commits, strict=True)
        for forward in source.forwards(commit)
    ]
    return merged_commit(
        commits[0], {item.key: item.fingerprint for item in items}, fidelity, forwards
    )


def merged_commit(first: Json, objects: Json, fidelity: Json, forwards: Sequence[Json]) -> Json:
    """The commit of a part that several builds have shares in; `first` is the first one's."""
    objects = dict(sorted(objects.items()))
    return {
        **first,
        "objects": objects,
        "attempt": digest(objects)[:16],
        "fidelity": fidelity,
        "forwards": list(forwards),
    }


def _completion(sources: Sequence[Source], parts: Sequence[Json]) -> Json:
    figures = {
        source.prefix + name: found
        for source in sources
        for name, found in source.cache.fidelity.items()
    }
    for name, signal in joined_signals(sources).items():
        sums = [part["fidelity"][name] for part in parts if name in part["fidelity"]]
        figures[name] = signal.summarise(add_up(sums))
    return {
        "parts": len(parts),
        "fidelity": figures,
        "contents": digest([record["objects"] for record in parts]),
        "commits": digest(list(parts)),
    }
