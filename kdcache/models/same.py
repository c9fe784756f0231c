"""The teacher a cache was made with, loaded again."""

from __future__ import annotations

from pathlib import Path

from kdcache.errors import MismatchError, ModelError
from kdcache.manifest import Json, differences
from kdcache.models.teacher import Teacher, load_teacher
from kdcache.tasks import Task

ELSEWHERE = {"name", "source"}  # where a teacher lies does not change what it says


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
    teacher = load_teacher(place, task=task, device=device, dtype=identity["dtype"])
    stored, found = (
        {key: value for key, value in record.items() if key not in ELSEWHERE}
        for record in (identity, teacher.identity)
    )
    other = differences(stored, found)
    if other:
        field, have, want = other[0]
        raise MismatchError(
            f"{place} is not the teacher of the cache: its {field} is {want!r} and the cache's "
            f"{have!r}; name the folder of the right one (--teacher FOLDER)"
        )
    return teacher
