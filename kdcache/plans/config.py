"""What a plan is made from, and the arrays with a row per document that it then has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from kdcache.labels import LABEL_KINDS
from kdcache.manifest import Json
from kdcache.tasks import IGNORE_INDEX

LABEL_DTYPE = "int32"
"""Of the labels that words have, where people label words."""
DOCUMENT_COLUMNS = {
    "doc_start": "int64",
    "doc_len": "int32",
    "doc_id": "int64",
    "label": "int32",
    "value": "float32",
    "pair_start": "int32",
    "view": "int16",
    "masked_start": "int64",
    "masked_len": "int32",
}
"""Arrays with a row per document that every plan has; `doc_len` 0 marks the padding rows at the end
of a part."""

FILL = {"doc_id": -1, "label": IGNORE_INDEX, "value": np.nan}


def document_columns(config: PlanConfig) -> dict[str, DocumentColumn]:
    """The arrays of a plan with a row per document: DOCUMENT_COLUMNS, and labels of several values.

    Empty rows, at the end of a part, hold `fill`.
    """
    found = {
        name: DocumentColumn(dtype, (), FILL.get(name, 0))
        for name, dtype in DOCUMENT_COLUMNS.items()
    }
    kind = LABEL_KINDS[config.label_kind]
    if kind.wide:
        shape = (len(config.classes or ()),)
        found[kind.column] = DocumentColumn(kind.dtype, shape, kind.fill())
    return found


class DocumentColumn(NamedTuple):
    """Type and shape of a row, and what a row without a document holds."""

    dtype: str
    shape: tuple[int, ...]
    fill: float


LABEL_KIND = "problem"
"""What manifests call the kind of labels."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a plan was made from: equal configurations and corpora give equal plans."""

    task: str
    label_kind: str  # name of the kind of its labels, see LABEL_KINDS
    tokenizer: Json  # name, sha256, vocab_size, pad_id, mask_id, type_ids
    corpus: Json  # source, sha256, documents, text_columns, label_column, truncated, classes
    max_length: int
    seed: int
    part_tokens: int
    mask_probability: float = 0.0
    views: int = 1

    def to_json(self) -> Json:
        """The configuration as manifests have it."""
        names = {"label_kind": LABEL_KIND}
        return {names.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Json) -> PlanConfig:
        """Read a configuration back; TypeError for fields that it does not have."""
        values = dict(record)
        return cls(label_kind=values.pop(LABEL_KIND), **values)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, in the order of their ids; None where labels are numbers."""
        names = self.corpus.get("classes")
        return list(names) if names else None
