"""A teacher of one task that is run over the documents of another's plan."""

from __future__ import annotations

from dataclasses import replace

from kdcache.errors import ConfigError
from kdcache.tasks.base import Task


def over(planned: Task, teacher: Task) -> Task:
    """What a teacher is run for over a plan of another task: its outputs at every token.

    Documents are as that plan has them: nothing of them is masked for a masked language model, and
    none of their labels is of its kind. Raises ConfigError for teachers that give classes or
    values, of which the plan knows nothing, and where a language model would read masked texts.
    """
    if teacher == planned:
        return planned
    if teacher.labelled or not planned.labelled:
        raise ConfigError(
            f"a teacher for {teacher} cannot be run over a plan for {planned}: a language model "
            "can, over a plan of classes or values; plan the corpus for its own task"
        )
    return replace(teacher, rows="token", selected="")
