"""What goes into a merged cache: teachers of several caches, and the names that theirs get."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcache.errors import ConfigError, MismatchError
from kdcache.maintenance.transfer import Item
from kdcache.manifest import Json, brief
from kdcache.plans.identity import FUNCTION, teacher_differences
from kdcache.signals import Signal, join
from kdcache.store.cache import Cache
from kdcache.store.format.manifest_schema import teacher_name, teacher_prefix


@dataclass(frozen=True)
class Source:
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
            yield from below(self.cache, layout.name, self.prefix + name)
        for name, where in self.cache.stored_files.locations.items():
            prefix = "" if name.startswith("tokenizer/") else self.prefix
            yield from below(self.cache, f"files/{where}", f"files/{prefix}{name}")

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


def below(cache: Cache, there: str, here: str) -> Iterator[Item]:
    """Objects of an array that were there before the first part."""
    for key, fingerprint in cache.objects.items():
        if key.startswith(f"{there}/"):
            name = here + key.removeprefix(there)
            yield Item(key=name, source=cache.path / key, fingerprint=fingerprint)


def sources_of(caches: Sequence[Cache]) -> list[Source]:
    """Give every teacher beside the first a name, and every cache its teacher's prefix."""
    held: dict[str, tuple[Cache, Signal]] = {}
    names: list[str] = []
    sources: list[Source] = []
    for cache in caches:
        teacher = cache.manifest["teacher"]
        same = [source for source in sources if _one_teacher(source.cache, cache)]
        if not same:
            names.append(teacher_name(teacher["name"], names))
        other = teacher_prefix(names[-1]) if sources else ""
        sources.append(Source(cache, same[0].prefix if same else other))
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


def joined_signals(sources: Sequence[Source]) -> dict[str, Signal]:
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
