"""The tasks a teacher can be run for, and the row spaces its outputs live in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["text-classification", "masked-lm", "causal-lm"]
TASKS: tuple[Task, ...] = ("text-classification", "masked-lm", "causal-lm")

Space = Literal["example", "token", "masked"]
"""`example`: a row per document; `token`: a row per token; `masked`: a row per masked position."""


@dataclass(frozen=True)
class Subset:
    """A `fraction` of the rows of a space, spread over every document; `Plan.kept` says which."""

    of: Space
    fraction: float

    def __str__(self) -> str:
        return f"{self.of}:fraction={self.fraction}"


RowSpace = Space | Subset
"""What the rows of an array belong to."""

ROW_AXIS: dict[Space, str] = {"example": "document", "token": "token", "masked": "masked"}


def axis_of(space: RowSpace) -> str:
    """Name of the dimension that the rows of a space make: arrays with one name share rows."""
    if isinstance(space, Subset):
        return f"{ROW_AXIS[space.of]}_fraction_{space.fraction}"
    return ROW_AXIS[space]


LOGITS_SPACE: dict[Task, Space] = {
    "text-classification": "example",
    "masked-lm": "masked",
    "causal-lm": "token",
}

IGNORE_INDEX = -100
"""Label of a row without a hard label, as in torch's cross-entropy."""
