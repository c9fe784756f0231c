"""Tasks a teacher can be run for, and the row spaces its outputs live in."""

from kdcache.tasks.base import (
    IGNORE_INDEX,
    LOGITS_SPACE,
    ROW_AXIS,
    TASKS,
    RowSpace,
    Space,
    Subset,
    Task,
    axis_of,
)

__all__ = [
    "IGNORE_INDEX",
    "LOGITS_SPACE",
    "ROW_AXIS",
    "TASKS",
    "RowSpace",
    "Space",
    "Subset",
    "Task",
    "axis_of",
]
