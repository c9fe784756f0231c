"""A cache whose documents a student reads with some of the tokens of its teacher's vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.building.own_tokenizer import OwnTokenizerCache
from kdcache.errors import DamageError
from kdcache.models.kept_tokens import KeptTokens, kept_beside
from kdcache.models.token_map import cached_tokenizer
from kdcache.models.trimmed_tokenizer import trimmed_tokenizer
from kdcache.plans import Array, Column, Docs, Plan
from kdcache.store import Cache


class TrimmedCache(OwnTokenizerCache):
    """A cache as a student reads it that keeps some of the vocabulary.

    Documents, labels and the teacher's outputs are those of the cache, row by row, and `files` the
    tokenizer with these tokens. `plan` and `batch` have each token by its number among them; one
    that is left out is the unknown one there.

    Args:
        source: the cache.
        kept: the tokens.
    """

    kept: KeptTokens

    def __init__(self, source: Cache, kept: KeptTokens) -> None:
        old = cached_tokenizer(source)
        super().__init__(source, trimmed_tokenizer(old, kept))
        self.kept = kept
        config, made = self.plan.config, self.tokenizer.identity
        numbers = {name: kept.number(config.tokenizer.get(name)) for name in ("pad_id", "mask_id")}
        known = {name: number for name, number in numbers.items() if number is not None}
        same = {name: made[name] for name in ("sha256", "vocab_size")}
        tokens = _Renumbered(self.plan.columns["tokens"], kept, old.plain.unk_token_id)
        self.plan: Plan = replace(
            self.plan,
            config=replace(config, tokenizer={**config.tokenizer, **same, **known}),
            columns={**self.plan.columns, "tokens": tokens},
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TrimmedCache, (self.source, self.kept)


class _Renumbered:
    """The tokens of a plan by their numbers among those that are kept."""

    def __init__(self, column: Column, kept: KeptTokens, unknown: int | None) -> None:
        self._column: Any = column
        self.dtype = np.dtype(np.int32)
        lost = kept.number(unknown)
        self._numbers = np.where(kept.numbers < 0, 0 if lost is None else lost, kept.numbers)

    def __getitem__(self, rows: slice) -> Array:
        return self._take(self._column[rows])

    def read(self, starts: Array, counts: Array) -> Array:
        """Rows of several spans, one after the other."""
        return self._take(self._column.read(starts, counts))

    def _take(self, ids: Array) -> Array:
        try:
            return np.take(self._numbers, ids)
        except IndexError as error:
            raise DamageError("tokens of the plan hold a value beyond what there can be") from error


def as_read_by(cache: Cache | None, student: str | Path) -> Cache | None:
    """A cache as the student in a folder reads it, if that keeps some of its vocabulary only."""
    kept = kept_beside(student)
    if cache is None or kept is None or cache.original is not cache:
        return cache
    same = len(kept.numbers) == cache.plan.config.tokenizer["vocab_size"]
    return TrimmedCache(cache, kept) if same else cache


def token_counts(plan: Plan) -> npt.NDArray[np.int64]:
    """How often each token is in the documents of a plan, [V], read part by part."""
    size = int(plan.config.tokenizer["vocab_size"])
    counts = np.zeros(size, np.int64)
    for _, ids in _parts(plan):
        found = np.bincount(ids, minlength=size)
        if len(found) > size:
            raise DamageError("tokens of the plan hold a value beyond what there can be")
        counts += found
    return counts


class Lost(NamedTuple):
    """What of the documents of a plan is left out: tokens, and documents that have one of them."""

    tokens: int
    documents: int


def left_out(plan: Plan, kept: KeptTokens) -> Lost:
    """How many tokens of a plan are none of those that are kept, and documents have one."""
    tokens = documents = 0
    for docs, ids in _parts(plan):
        starts, lens = plan.spans(docs, "token")
        out = np.add.reduceat(kept.numbers[ids] < 0, starts - starts[0], dtype=np.int64)
        assert int(lens.sum()) == len(ids)
        tokens, documents = tokens + int(out.sum()), documents + int(np.count_nonzero(out))
    return Lost(tokens, documents)


def _parts(plan: Plan) -> Iterator[tuple[Docs, Array]]:
    """The documents of each part, and their tokens, one document after the other."""
    for part in range(plan.parts):
        docs, first = plan.part_docs(part), part * plan.rows["token"]
        if len(docs):
            yield docs, plan.columns["tokens"][first : first + plan.extent(docs, "token")]
