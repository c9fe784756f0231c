"""Students that are trained as one module, so that they can learn from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdcache.errors import ConfigError


class Together(nn.Module):
    """Two students or more, in one module: `kdcache.train` gives each the losses of the recipe.

    With the loss `mutual` each learns from the logits of the others too. The objective is the sum
    over students, which share no weight: each is trained as it would be alone but for that loss,
    for the clipping of gradients, which is that of all, and for dropout, whose masks are drawn for
    one after the other. They are saved to folders of their own, `student-1` and on.

    Source: Zhang et al. 2018, Deep Mutual Learning, arXiv:1706.00384.

    Args:
        students: modules as `kdcache.train(student=...)` takes one; transformers' models too.

    Raises ConfigError for fewer than two, or one that is there twice.
    """

    def __init__(self, students: Sequence[nn.Module]) -> None:
        super().__init__()
        given = list(students)
        if len(given) < 2 or not all(isinstance(student, nn.Module) for student in given):
            raise ConfigError(
                "students are trained together as a list of two modules or more; got "
                f"{[type(student).__name__ for student in given]}"
            )
        if len({id(student) for student in given}) < len(given):
            raise ConfigError("a student is there twice, and would learn from itself: make another")
        self.students = nn.ModuleList(given)

    def forward(self, **inputs: Any) -> list[Any]:
        """What each student says of a batch."""
        return [student(**inputs) for student in self.students]
