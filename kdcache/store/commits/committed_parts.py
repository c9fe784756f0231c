"""What of a cache can be read while it is still being built."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kdcache.plans import Docs
from kdcache.store.cache import Cache
from kdcache.store.format.commit_log import sizes_of
from kdcache.store.io.durable_writes import object_sizes


def parts_in_place(cache: Cache) -> list[int]:
    """Parts that are committed and whose objects are all where they belong, with their sizes.

    A commit comes before its objects move into place, so a part may be committed and not yet
    there, or wait for the next build if its writer was killed in between.
    """
    if cache.complete:
        return list(range(cache.plan.parts))
    sizes = object_sizes(cache.path)  # one listing: a bucket is slow to ask about each
    return [
        part for part in cache.committed if sizes_of(cache.commit(part)).items() <= sizes.items()
    ]


def part_documents(cache: Cache, parts: Iterable[int]) -> Docs:
    """Documents (rows of the plan's document space) of some parts, in plan order."""
    found = [cache.plan.part_docs(part) for part in sorted(parts)]
    return np.concatenate([np.empty(0, np.int64), *found])
