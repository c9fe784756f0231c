"""The students that recipes are compared on, and what a comparison of each is called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYERS = (3, 6)
"""Of a teacher of six."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Students of a kind.

    Attributes:
        study: what results of the comparison are called, beside `suffix` those of others.
        title: of its picture.
        rates: the learning rates that are tried.
        student: as `kdcache.train` has it; none: one of the trial's layers.
        config: a model of transformers' of new weights, by what is otherwise than in the teacher.
        as_shipped: recipes whose students share blocks, and of it half of those it has, so that
            they need no way of their own (`trial_ways.py`).
    """

    study: str
    title: str
    rates: tuple[float, float]
    student: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    as_shipped: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        return self.study.removeprefix("methods")

    def made(self, out: Path) -> dict[str, Any]:
        """What `kdcache.train` is told of it; a configuration is written beside the teacher's."""
        if not self.config:
            return dict(self.student)
        folder = out / self.study
        folder.mkdir(parents=True, exist_ok=True)
        theirs = json.loads((out / "teacher" / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(theirs | dict(self.config)), "utf-8")
        return {"config": folder}

    def to_json(self) -> Any:
        """What it is, for a result."""
        return dict(self.config) or self.student.get("student") or {"layers": LAYERS}


KINDS = {
    "layers": Kind(study="methods", title="Two layers of the teacher", rates=(2e-4, 6e-4)),
    "bilstm": Kind(
        study="methods_new",
        title="A new BiLSTM",
        rates=(1e-3, 4e-3),
        student={"student": "bilstm"},
    ),
    "transformer": Kind(
        study="methods_transformer",
        title="A new Transformer",
        rates=(5e-4, 2e-3),
        config={"num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 384},
        as_shipped=("pea-kd",),
    ),
}
"""By the name that scripts are asked for."""
