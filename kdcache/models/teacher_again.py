"""The teacher a cache was made with, loaded again."""

from __future__ import annotations

from pathlib import Path

from kdcache.errors import MismatchError, ModelError
from kdcache.manifest import Json, brief
from kdcache.models.auto import load_config
from kdcache.models.student_config import is_foreign
from kdcache.models.teacher import Teacher, load_teacher
from kdcache.plans.identity import teacher_differences
from kdcache.tasks import Task


def load_same_teacher(
    identity: Json, *, task: Task, source: str | Path | None = None, device: str = "auto"
) -> Teacher:
    """Load the teacher that has `identity` in a manifest, from `source` or where it lay then.

    Never runs code that comes with a model.

    Raises ModelError if it is not there, MismatchError, naming the field, if it is another one.
    """
    place = identity["source"] if source is None else str(source)
    if source is None and Path(place).is_absolute() and not Path(place).exists():
        raise ModelError(
            f"the teacher is no longer at {place}; say where it is now (--teacher FOLDER)"
        )
    if is_foreign(config := load_config(place)):
        raise ModelError(
            f"the teacher in {place} is a {config.student}, whose code is not run again here: a "
            "cache of it cannot be compared with it, or repaired; build it anew"
        )
    teacher = load_teacher(place, task=task, device=device, dtype=identity["dtype"])
    require_same_teacher(
        identity, teacher, place, "name the folder of the right one (--teacher FOLDER)"
    )
    return teacher


def require_same_teacher(identity: Json, teacher: Teacher, place: str | Path, way: str) -> None:
    """MismatchError unless a teacher, which lies at `place`, is that of a manifest.

    `way` says what to do.
    """
    other = teacher_differences(identity, teacher.identity)
    if other:
        field, have, want = other[0]
        raise MismatchError(
            f"{place} is not the teacher of the cache: its {brief(field)} is {brief(want)} there "
            f"and {brief(have)} in the cache; {way}"
        )
