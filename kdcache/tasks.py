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

LOGITS_SPACE: dict[Task, Space] = {
    "text-classification": "example",
    "masked-lm": "masked",
    "causal-lm": "token",
}

IGNORE_INDEX = -100
"""Label of a row without a hard label, as in torch's cross-entropy."""
