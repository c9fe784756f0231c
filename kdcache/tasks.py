"""The tasks a teacher can be run for, and the row spaces its outputs live in."""

from __future__ import annotations

from typing import Literal

Task = Literal["text-classification", "masked-lm", "causal-lm"]
TASKS: tuple[Task, ...] = ("text-classification", "masked-lm", "causal-lm")

Space = Literal["example", "token", "masked"]
"""`example`: a row per document; `token`: a row per token; `masked`: a row per masked position."""

LOGITS_SPACE: dict[Task, Space] = {
    "text-classification": "example",
    "masked-lm": "masked",
    "causal-lm": "token",
}

IGNORE_INDEX = -100
"""Label of a row without a hard label, as in torch's cross-entropy."""
