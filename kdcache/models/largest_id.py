"""Tokens that a plan holds and a model has no embedding for."""

from __future__ import annotations

import numpy as np

from kdcache.errors import ModelError
from kdcache.plans import Plan
from kdcache.tasks import Space


def require_ids(plan: Plan, vocabulary: int, who: str, way: str) -> None:
    """Raise ModelError, naming a document, if one holds an id that a model of `vocabulary` lacks.

    A tokenizer may have tokens that its model lacks, as long as no document has them. The plan is
    read only where it can have any. The message ends with `way`, which says what to do.
    """
    found = _first_beyond(plan, vocabulary)
    if found is not None:
        document, token = found
        raise ModelError(
            f"row {document} of the corpus (0 is the first) holds token {token}, and {who} has "
            f"{vocabulary} tokens: {way}"
        )


def _first_beyond(plan: Plan, vocabulary: int) -> tuple[int, int] | None:
    """Row of the corpus and id of the first token that is not below `vocabulary`."""
    if plan.config.tokenizer["vocab_size"] <= vocabulary:
        return None
    columns: list[tuple[str, Space]] = [("tokens", "token")]
    if plan.task.selects and not plan.task.labelled:  # labels are tokens
        columns.append(("masked_label", "selected"))
    for part in range(plan.parts):
        for name, space in columns:
            start = part * plan.rows[space]
            ids = plan.columns[name][start : start + plan.rows[space]]
            beyond = np.flatnonzero(ids >= vocabulary)
            if len(beyond):
                row = start + int(beyond[0])
                return _document(plan, part, space, row), int(ids[beyond[0]])
    return None


def _document(plan: Plan, part: int, space: Space, row: int) -> int:
    docs = plan.part_docs(part)
    starts, counts = plan.spans(docs, space)
    inside = (starts <= row) & (row < starts + counts)
    return int(plan.per_document["doc_id"][docs[int(inside.argmax())]])
