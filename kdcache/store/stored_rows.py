"""The rows of a store's arrays, read where those of documents lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from kdcache.errors import ConfigError, one_of
from kdcache.plans import Array, Docs, Plan
from kdcache.store.format.array_reader import ArrayReader
from kdcache.store.format.compressed_reader import PackedReader
from kdcache.store.format.spans import Pieces, cut_spans
from kdcache.tasks import RowSpace


@dataclass(frozen=True)
class StoredRows:
    """Rows of arrays, by the documents of a plan.

    Attributes:
        plan: where the rows of its documents lie.
        spaces: the row space of each array, by name.
        readers: what reads each.
    """

    plan: Plan
    spaces: Mapping[str, RowSpace]
    readers: Mapping[str, ArrayReader | PackedReader]

    def read(
        self, docs: Docs, arrays: Iterable[str], out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """The rows of several arrays, one document after the other; see `Cache.rows`."""
        docs = np.asarray(docs, np.int64)
        require_documents(self.plan, docs)
        cuts: dict[tuple[RowSpace, int], Pieces] = {}
        rows = {}
        for name in arrays:
            reader = self.readers[one_of("array of this cache", name, self.readers)]
            place = self.spaces[name], reader.layout.chunk_rows
            if place not in cuts:
                cuts[place] = cut_spans(*self.plan.spans(docs, place[0]), place[1])
            target = None if out is None else out[name][: cuts[place].total]
            rows[name] = reader.gather(cuts[place], target)
        return rows


def require_documents(plan: Plan, docs: Docs) -> None:
    """ConfigError for rows of the document space that hold no document.

    Those of padding hold zeros that look like outputs of a teacher: they are not for reading.
    """
    lens = plan.per_document["doc_len"]
    inside = (docs >= 0) & (docs < len(lens))
    wrong = docs[~inside] if not inside.all() else docs[lens[docs] == 0]
    if len(wrong):
        raise ConfigError(f"row {wrong[0]} holds no document; `plan.docs` lists those that do")
