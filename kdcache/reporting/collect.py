"""Facts from folders: what each is, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from kdcache.errors import ConfigError, KdcacheError
from kdcache.reporting.caches import is_cache, noted_caches, read_cache
from kdcache.reporting.facts import Facts
from kdcache.reporting.shipped import is_shipped, read_shipped
from kdcache.reporting.students import homes_of, is_student, is_taught, read_student, read_teacher
from kdcache.reporting.sweeps import is_sweep, picked_folder, read_sweep
from kdcache.store import Place, locate
from kdcache.store.io.object_path import Root


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of folder.

    Attributes:
        told: what it is called.
        holds: whether one lies at a place.
        read: what it tells, given its place and what it is called on the page.
    """

    told: str
    holds: Callable[[Root], bool]
    read: Callable[[Root, str], Facts]


def _students(place: Root, name: str) -> Facts:
    folder = Path(str(place))
    homes = homes_of(folder)
    names = [name if home == folder else f"{name}/{home.name}" for home in homes]
    return Facts(students=tuple(map(read_student, homes, names)))


def _teacher(place: Root, name: str) -> Facts:
    return Facts(teachers=(read_teacher(Path(str(place)), name),))


def _shipped(place: Root, name: str) -> Facts:
    return Facts(shipped=(read_shipped(Path(str(place)), name),))


def _sweep(place: Root, name: str) -> Facts:
    """A sweep, with the student that it picked."""
    sweep = read_sweep(Path(str(place)), name)
    picked = picked_folder(sweep)
    if picked is None or not is_student(picked):
        return Facts(sweeps=(sweep,))
    return Facts(sweeps=(sweep,), students=(read_student(picked, f"{name}/{picked.name}"),))


def _cache(place: Root, name: str) -> Facts:
    try:
        return Facts(caches=(read_cache(place, name),))
    except KdcacheError as error:
        return Facts(notes=(f"{name} cannot be read: {error}",))


def _local(holds: Callable[[Path], bool]) -> Callable[[Root], bool]:
    """The same of a place that may lie in an object store, where only caches do."""
    return lambda place: isinstance(place, Path) and holds(place)


KINDS = (
    Kind(told="a sweep (kdcache sweep)", holds=_local(is_sweep), read=_sweep),
    Kind(told="a student (kdcache train)", holds=_local(is_student), read=_students),
    Kind(told="a taught teacher (kdcache teach)", holds=_local(is_taught), read=_teacher),
    Kind(told="a shipped model (kdcache ship)", holds=_local(is_shipped), read=_shipped),
    Kind(told="a cache (kdcache build)", holds=is_cache, read=_cache),
)
"""Every kind of folder that a report tells of, in the order they are asked for."""


def collect(places: Sequence[Place]) -> Facts:
    """What folders tell: those of students, of shipped models, of caches and of taught teachers.

    Caches that students were trained from and nobody named are told as the students noted them.

    Raises:
        ConfigError: there is no folder, or one of another kind.
        CacheError: a plan.
    """
    if not places:
        raise ConfigError(f"a report tells of folders; name one or more: {_kinds()}")
    named = {root: _kind_of(root) for root in map(locate, places)}
    names = unique_names(list(map(str, named)))
    read = [kind.read(root, name) for (root, kind), name in zip(named.items(), names, strict=True)]
    parts = [part.name for part in fields(Facts)]
    found = Facts(**{p: tuple(one for facts in read for one in getattr(facts, p)) for p in parts})
    return replace(found, caches=(*found.caches, *noted_caches(found.students, found.caches)))


def _kind_of(root: Root) -> Kind:
    if isinstance(root, Path) and not root.is_dir():
        raise ConfigError(f"there is no folder {root}; a report tells of {_kinds()}")
    found = next((kind for kind in KINDS if kind.holds(root)), None)
    if found is None:
        raise ConfigError(f"{root} is not the folder of anything a report tells of: {_kinds()}")
    return found


def _kinds() -> str:
    *others, last = (kind.told for kind in KINDS)
    return f"{', '.join(others)} or {last}"


def unique_names(paths: Sequence[str]) -> list[str]:
    """The last part of every path, with as many parts before it as tell it from the others."""
    parts = [[part for part in path.split("/") if part not in ("", ".")] for path in paths]
    depths = [1] * len(parts)
    while True:
        names = ["/".join(one[-depth:]) for one, depth in zip(parts, depths, strict=True)]
        longer = [
            depth + (names.count(name) > 1 and depth < len(one))
            for one, depth, name in zip(parts, depths, names, strict=True)
        ]
        if longer == depths:
            return [name or path for name, path in zip(names, paths, strict=True)]
        depths = longer
