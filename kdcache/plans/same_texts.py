"""Which documents of two plans, or of one, are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from kdcache.plans import Array, Docs, Plan
from kdcache.tasks import Space


def document_keys(plan: Plan) -> Iterator[tuple[int, bytes]]:
    """Each document's row and a digest of what a model is given: tokens and selected positions."""
    columns: list[tuple[str, Space]] = [("tokens", "token")]
    if "selected" in plan.rows:
        columns.append(("masked_position", "selected"))
    for part in range(plan.parts):
        docs = plan.part_docs(part)
        states = [hashlib.blake2b(digest_size=16) for _ in docs]
        for name, space in columns:
            _update(states, plan, docs, part, space, _rows(plan, part, name, space))
        yield from zip(docs.tolist(), (state.digest() for state in states), strict=True)


def text_keys(plan: Plan) -> Iterator[tuple[int, bytes]]:
    """Each document's row and a digest of its text: of its tokens before any was masked."""
    for part in range(plan.parts):
        docs = plan.part_docs(part)
        states = [hashlib.blake2b(digest_size=16) for _ in docs]
        tokens = _rows(plan, part, "tokens", "token")
        if plan.task.selects and not plan.task.labelled:  # labels are tokens
            _unmask(tokens, plan, docs, part)
        _update(states, plan, docs, part, "token", tokens)
        yield from zip(docs.tolist(), (state.digest() for state in states), strict=True)


def _rows(plan: Plan, part: int, name: str, space: Space) -> Array:
    size = plan.rows[space]
    return plan.columns[name][part * size : (part + 1) * size].astype(np.int64)


def _unmask(tokens: Array, plan: Plan, docs: Docs, part: int) -> None:
    """Put the tokens that masked positions held back to where they were."""
    counts = plan.spans(docs, "selected")[1]
    filled = int(counts.sum())  # documents of a part lie one after the other
    within = _rows(plan, part, "masked_position", "selected")[:filled]
    starts = plan.spans(docs, "token")[0] - part * plan.rows["token"]
    tokens[np.repeat(starts, counts) + within] = _rows(plan, part, "masked_label", "selected")[
        :filled
    ]


def _update(
    states: list[hashlib.blake2b], plan: Plan, docs: Docs, part: int, space: Space, rows: Array
) -> None:
    starts, counts = plan.spans(docs, space)
    starts = starts - part * plan.rows[space]
    for state, start, count in zip(states, starts, counts, strict=True):
        state.update(np.int64(count).tobytes())
        state.update(rows[start : start + count].tobytes())
