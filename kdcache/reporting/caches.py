"""A cache: as it lies in its folder, or as the students that were trained from it noted it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdcache.building.describe import describe_cache
from kdcache.errors import CacheError
from kdcache.manifest import Json
from kdcache.reporting.facts import CacheFacts, StudentFacts
from kdcache.store import open_cache
from kdcache.store.format.zarr_metadata import read_record
from kdcache.store.io.object_path import Root

NOTED = (
    "its folder is not among those named, and this is what its students noted of it: its bytes are "
    "not known; name its folder, where it lies now"
)


def is_cache(place: Root) -> bool:
    """Whether a cache lies there; CacheError for a plan."""
    record = read_record(place)
    if record is not None and record.get("kind") == "plan":
        raise CacheError(
            f"{place} is a plan, and a report tells of what was made from one: name caches, "
            "students, shipped folders or sweeps"
        )
    return record is not None


def read_cache(place: Root, name: str) -> CacheFacts:
    """What a cache tells of itself."""
    cache = open_cache(place)
    manifest, notes = cache.manifest, []
    if not cache.complete:
        notes.append("it is incomplete: run the same `kdcache build` again")
    return CacheFacts(
        name=name,
        folder=str(place),
        plan_sha256=manifest["plan"]["sha256"],
        contents=str(cache.completion["contents"]) if cache.completion else None,
        plan=manifest["plan"]["config"],
        teacher={key: value for key, value in manifest["teacher"].items() if key != "source"},
        signals=manifest["signals"],
        fidelity=cache.fidelity,
        described=describe_cache(cache),
        notes=tuple(notes),
    )


def noted_caches(
    students: Iterable[StudentFacts], known: Iterable[CacheFacts]
) -> Iterator[CacheFacts]:
    """The caches that students were trained from and nobody named, one each."""
    seen = {_key(one.plan_sha256, one.teacher) for one in known}
    for student in students:
        record = student.record
        plan, teacher = record.get("plan"), record.get("teacher")
        if not isinstance(plan, str) or not isinstance(teacher, dict):
            continue
        key = _key(plan, teacher)
        if key in seen:
            continue
        seen.add(key)
        yield CacheFacts(
            name=f"cache of {student.name}",
            folder=None,
            plan_sha256=plan,
            contents=record.get("contents"),
            plan=student.plan,
            teacher=teacher,
            signals=record.get("signals") or {},
            fidelity=record.get("fidelity") or {},
            notes=(NOTED,),
        )


def cache_of(student: StudentFacts, caches: Iterable[CacheFacts]) -> CacheFacts | None:
    """The cache that a student was (first) trained from; None where its folder does not tell."""
    teacher = student.record.get("teacher") or {}
    wanted = _key(str(student.record.get("plan")), teacher)
    return next((c for c in caches if _key(c.plan_sha256, c.teacher) == wanted), None)


def _key(plan: str, teacher: Json) -> tuple[str, str]:
    return plan, str(teacher.get("weights_sha256"))
