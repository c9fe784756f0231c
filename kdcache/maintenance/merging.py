"""Merge caches of one plan: what was asked of a teacher later, or of another teacher, side by side.

A manifest has one main teacher. Signals of the same teacher join it; outputs of another teacher
become a teacher with a folder and a table of its own (docs/decisions/0009).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from kdcache.errors import ConfigError, MismatchError
from kdcache.maintenance.transfer import COMPLETE, MANIFEST, Item, Transfer, transfer
from kdcache.manifest import Json, brief, differences, digest, require_current
from kdcache.plans.identity import (
    FUNCTION,
    has_configuration,
    nameless,
    say_unvouched,
    teacher_differences,
)
from kdcache.progress import Shown, short, shown
from kdcache.signals import Signal, join, to_record
from kdcache.signals import merge as add_up
from kdcache.store.cache import Cache
from kdcache.store.create import PLAN_COMMIT, plan_commit
from kdcache.store.format.commit_log import part_name
from kdcache.store.format.manifest_schema import plan_specs, teacher_name, teacher_prefix
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
    shares = _sources(caches)
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


@dataclass(frozen=True)
class _Source:
    """One teacher of one cache, and the prefix its names get."""

    cache: Cache
    prefix: str

    @property
    def signals(self) -> dict[str, str]:
        """Its signals: names in their own cache, by name."""
        return {self.prefix + name: self.cache.prefix + name for name in self.cache.signals}

    @property
    def held(self) -> dict[str, Signal]:
        """Its signals by the names they get."""
        return {self.prefix + name: signal for name, signal in self.cache.signals.items()}

    @property
    def _entries(self) -> dict[int, Json]:
        """What its cache tells of the builds it was merged from that are of this teacher, each with
        its number; none of a cache that is one build.
        """
        merged = self.cache.manifest.get("merged", [])
        prefix = self.cache.prefix.rstrip("/")
        return {
            number: entry
            for number, entry in enumerate(merged)
            if entry["signals"][0].rpartition("/")[0] == prefix
        }

    def builds(self, joined: Collection[str]) -> Iterator[Json]:
        """Who made its signals, by the names they get; of those that others have layers of, too,
        with the layers that are of each build.
        """
        if not self._entries:
            yield self._build(list(self.cache.signals), {}, joined) | {
                "software": self.cache.manifest["software"],
                "contents": (self.cache.completion or {})["contents"],
            }
        for entry in self._entries.values():
            own = [name.rpartition("/")[2] for name in entry["signals"]]
            layers = {n.rpartition("/")[2]: found for n, found in entry.get("layers", {}).items()}
            rest = {name: entry[name] for name in ("software", "contents")}
            yield self._build(own, layers, joined) | rest

    def _build(self, names: list[str], layers: Mapping[str, Any], joined: Collection[str]) -> Json:
        held: dict[str, Any] = {**self.cache.signals}
        several = [name for name in names if name in layers or self.prefix + name in joined]
        found = {self.prefix + n: list(layers.get(n, held[n].layers)) for n in several}
        return {
            "signals": [self.prefix + name for name in names],
            **({"layers": found} if found else {}),
        }

    def forwards(self, commit: Json) -> list[Json]:
        """How the teacher was run for a part, by each of its builds."""
        if not self._entries:
            return [commit["forward"]]
        return [commit["forwards"][number] for number in self._entries]

    def before_parts(self) -> Iterator[Item]:
        """Metadata of its arrays, and its files."""
        for name, layout in self.cache.layouts.items():
            yield from _below(self.cache, layout.name, self.prefix + name)
        for name, where in self.cache.stored_files.locations.items():
            prefix = "" if name.startswith("tokenizer/") else self.prefix
            yield from _below(self.cache, f"files/{where}", f"files/{prefix}{name}")

    def of_part(self, part: int) -> Iterator[Item]:
        """Its shards of a part."""
        for name, layout in self.cache.layouts.items():
            named = replace(layout, name=self.prefix + name)
            for shard in layout.part_shards(part):
                key = layout.key(shard)
                fingerprint = self.cache.commit_log.fingerprint(part, key)
                yield Item(
                    key=named.key(shard), source=self.cache.path / key, fingerprint=fingerprint
                )


def _below(cache: Cache, there: str, here: str) -> Iterator[Item]:
    """Objects of an array that were there before the first part."""
    for key, fingerprint in cache.objects.items():
        if key.startswith(f"{there}/"):
            name = here + key.removeprefix(there)
            yield Item(key=name, source=cache.path / key, fingerprint=fingerprint)


def _sources(caches: Sequence[Cache]) -> list[_Source]:
    """Give every teacher beside the first a name, and every cache its teacher's prefix."""
    held: dict[str, tuple[Cache, Signal]] = {}
    names: list[str] = []
    sources: list[_Source] = []
    for cache in caches:
        teacher = cache.manifest["teacher"]
        same = [source for source in sources if _one_teacher(source.cache, cache)]
        if not same:
            names.append(teacher_name(teacher["name"], names))
        other = teacher_prefix(names[-1]) if sources else ""
        sources.append(_Source(cache, same[0].prefix if same else other))
        for name, signal in sources[-1].held.items():
            twin = next((n for n in held if n != name and n.casefold() == name.casefold()), None)
            if twin is not None:
                raise ConfigError(
                    f"{cache.path} holds {name} and {held[twin][0].path} {twin}: names that differ "
                    "in case alone are one file on some disks; build one of them under another name"
                )
            first, known = held.get(name, (cache, None))
            try:
                held[name] = first, signal if known is None else join(known, signal)
            except ConfigError as error:
                raise ConfigError(
                    f"{first.path} and {cache.path} both hold {name.rpartition('/')[2]} of "
                    f"{teacher['name']}; {error}: leave one of them out, or build it under another "
                    f"name (--signal more={signal.kind}:...)"
                ) from error
    return sources


def _joined(sources: Sequence[_Source]) -> dict[str, Signal]:
    """Signals that several sources have layers of, by their names in the store."""
    found: dict[str, Signal] = {}
    joined: dict[str, Signal] = {}
    for source in sources:
        for name, signal in source.held.items():
            if name in found:
                joined[name] = signal = join(found[name], signal)
            found[name] = signal
    return joined


def _one_teacher(first: Cache, other: Cache) -> bool:
    """Whether two caches have one teacher; MismatchError if only what is made of it differs."""
    found = teacher_differences(first.manifest["teacher"], other.manifest["teacher"])
    if not found:
        shapes = first.manifest["shape"], other.manifest["shape"]
        return all(
            shapes[0][name] == shapes[1][name] for name in shapes[0].keys() & shapes[1].keys()
        )
    if any(name.partition(".")[0] not in FUNCTION for name, _, _ in found):
        return False
    name, have, want = found[0]
    raise MismatchError(
        f"{other.path} is of another teacher than {first.path}, with the same weights: "
        f"teacher.{brief(name)} is {brief(want)} there and {brief(have)} here; build one of them "
        "anew with the configuration of the other, or keep them apart"
    )


def _plan_items(first: Cache, sources: Sequence[_Source]) -> dict[str, Item]:
    """All that goes before the first part, by key: plan, metadata, files, and groups above them."""
    found = {}
    for spec in plan_specs(first.plan):
        found.update({item.key: item for item in _below(first, spec.name, spec.name)})
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


def _manifest(sources: Sequence[_Source], objects: Json) -> Json:
    oldest = min((s.cache.manifest for s in sources), key=lambda known: known["format"])
    tables: dict[str, Json] = {}
    joined = _joined(sources)
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


def _part_record(sources: Sequence[_Source], part: int, items: Sequence[Item]) -> Json:
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


def _completion(sources: Sequence[_Source], parts: Sequence[Json]) -> Json:
    figures = {
        source.prefix + name: found
        for source in sources
        for name, found in source.cache.fidelity.items()
    }
    for name, signal in _joined(sources).items():
        sums = [part["fidelity"][name] for part in parts if name in part["fidelity"]]
        figures[name] = signal.summarise(add_up(sums))
    return {
        "parts": len(parts),
        "fidelity": figures,
        "contents": digest([record["objects"] for record in parts]),
        "commits": digest(list(parts)),
    }
