"""What a cache has to learn from, known without reading a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from kdcache.labels import LABEL_KINDS, LabelKind
from kdcache.signals import ModelSizes, Signal
from kdcache.signals.base import settings_text
from kdcache.tasks import Task


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """What there is to learn from in a cache, known without reading a row.

    Attributes:
        label_kind: name of the kind of its labels.
        shape: sizes of the teacher.
        labelled: documents with a hard label.
        name: of the teacher.
        prefix: what the names of its arrays begin with in a batch.
        others: the same of the cache's further teachers, by name.
        documents: how many there are, by whose `places` a loss may remember them.
        before: how many lie before each part; a part takes `part_rows` of the numbers in a batch.
        reworded: whether the student reads its texts in another vocabulary than the teacher.
        points: whether its documents are read at the points that it holds.
    """

    task: Task
    label_kind: str
    signals: Mapping[str, Signal]
    shape: ModelSizes
    labelled: int
    name: str = ""
    prefix: str = ""
    others: Mapping[str, CacheSpec] = field(default_factory=dict)
    documents: int = 0
    before: tuple[int, ...] = (0,)
    part_rows: int = 0
    reworded: bool = False
    points: bool = False

    @property
    def teachers(self) -> Mapping[str, CacheSpec]:
        """The cache as each of its teachers, by name, the first one first."""
        return {self.name: self, **self.others}

    @property
    def labels(self) -> LabelKind:
        """The kind of its labels."""
        return LABEL_KINDS[self.label_kind]

    def places(self, docs: torch.Tensor) -> torch.Tensor:
        """Places of documents among all, from 0 to `documents`, [B] int64, by their numbers in a
        batch, which have gaps at the ends of parts.
        """
        if len(self.before) == 1:
            return docs
        part = docs // self.part_rows
        return docs - part * self.part_rows + torch.tensor(self.before, device=docs.device)[part]

    def held(self) -> str:
        """The signals of the teacher, for messages."""
        held = [f"{name} ({_settings(signal)})" for name, signal in self.signals.items()]
        of = f" of teacher {self.name}" if self.prefix or self.others else ""
        return (" and ".join(held) or "no signals") + of

    def shared(self, student: ModelSizes) -> int | None:
        """How many outputs both have; None where neither has more than that.

        Language models pad their output layers to sizes that suit their machines; what lies beyond
        the vocabulary means nothing, and seldom has as many rows in a teacher and its student.
        """
        if self.task.labelled or student.outputs == self.shape.outputs:
            return None
        return min(student.outputs, self.shape.outputs)


def _settings(signal: Signal) -> str:
    values = {name: value for name, value in signal.to_json().items() if value != signal.kind}
    return settings_text(values, ", ")
