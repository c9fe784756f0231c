"""Tasks a teacher can be run for, and the row spaces its outputs live in. TASKS is the table."""

from kdcache.errors import one_of
from kdcache.tasks.base import (
    IGNORE_INDEX,
    ROW_AXIS,
    STORED,
    Entry,
    RowSpace,
    Space,
    Subset,
    Task,
    axis_of,
    stored_name,
)
from kdcache.tasks.causal_lm import CAUSAL_LM
from kdcache.tasks.masked_lm import MASKED_LM, MASKED_LM_ALL
from kdcache.tasks.over import over
from kdcache.tasks.text_classification import TEXT_CLASSIFICATION
from kdcache.tasks.token_classification import TOKEN_CLASSIFICATION

__all__ = [
    "IGNORE_INDEX",
    "ROW_AXIS",
    "STORED",
    "TASKS",
    "Entry",
    "RowSpace",
    "Space",
    "Subset",
    "Task",
    "as_task",
    "axis_of",
    "over",
    "stored_name",
]

TASKS: dict[str, Task] = {
    "text-classification": TEXT_CLASSIFICATION,
    "masked-lm": MASKED_LM,
    "masked-lm-all": MASKED_LM_ALL,
    "causal-lm": CAUSAL_LM,
    "token-classification": TOKEN_CLASSIFICATION,
}
"""Every task by its name."""


def as_task(task: str | Task) -> Task:
    """The task of a name; ConfigError, with the nearest name, if there is none."""
    return task if isinstance(task, Task) else TASKS[one_of("task", task, TASKS)]
