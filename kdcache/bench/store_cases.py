"""What is read in `kdcache bench store`: batches as training takes them, and as it could."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.bench.store_source import BATCH_TOKENS, Source, Wanted
from kdcache.plans import Array, Plan
from kdcache.plans.batch import epoch_order

DOCUMENTS = 512  # of the case that reads one at a time


@dataclass(frozen=True, kw_only=True)
class Case:
    """Batches to read, in order; `tokens` of each."""

    name: str
    batches: Sequence[Wanted]
    tokens: Sequence[int]


def cases(source: Source, seed: int = 0) -> list[Case]:
    """The cases, over the documents of the source's parts.

    - shuffled documents: batches of about 8,192 tokens in the order of a training epoch; each
      document lies elsewhere;
    - shuffled runs: the same of documents that lie one after the other, the batches in random
      order, which suits readers of whole chunks (a plan is shuffled before it is stored);
    - sequential: these batches in their order;
    - one document: documents one at a time, in random order.
    """
    plan = source.cache.plan
    docs = np.concatenate([plan.part_docs(part) for part in range(source.parts)])
    mixed = docs[epoch_order(len(docs), seed=seed, epoch=0)]
    runs = _batches(plan, docs)
    turn = np.random.default_rng(seed).permutation(len(runs))
    single = [mixed[i : i + 1] for i in range(min(DOCUMENTS, len(mixed)))]
    return [
        _case("shuffled documents", source, _batches(plan, mixed)),
        _case("shuffled runs", source, [runs[i] for i in turn]),
        _case("sequential", source, runs),
        _case("one document", source, single),
    ]


def _batches(plan: Plan, docs: Array) -> list[Array]:
    """Documents in runs of BATCH_TOKENS tokens or a little less; one run if there are fewer."""
    ends = np.cumsum(plan.per_document["doc_len"][docs])
    bounds, done = [0], 0
    while bounds[-1] < len(docs) and ends[-1] - done >= BATCH_TOKENS:
        stop = int(np.searchsorted(ends, done + BATCH_TOKENS, side="right"))
        bounds.append(max(stop, bounds[-1] + 1))
        done = int(ends[bounds[-1] - 1])
    if len(bounds) == 1:
        return [docs]
    return [docs[a:b] for a, b in itertools.pairwise(bounds)]


def _case(name: str, source: Source, batches: Sequence[Array]) -> Case:
    plan = source.cache.plan
    spaces = dict.fromkeys([*plan.rows, *source.cache.spaces.values()])
    return Case(
        name=name,
        batches=[
            Wanted(docs, {s: _joined(*plan.spans(docs, s)) for s in spaces}) for docs in batches
        ],
        tokens=[int(plan.per_document["doc_len"][docs].sum()) for docs in batches],
    )


def _joined(starts: Array, counts: Array) -> tuple[Array, Array]:
    """Spans that follow one another as one, for all readers alike."""
    starts, counts = starts.astype(np.int64), counts.astype(np.int64)
    opens = np.flatnonzero(np.append(True, starts[1:] != (starts + counts)[:-1]))
    return starts[opens], np.add.reduceat(counts, opens)
