"""The rows that every reader of `kdcache bench store` gives, and what it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.errors import ConfigError
from kdcache.plans import Array
from kdcache.store import Cache
from kdcache.store.format.array_reader import aligned
from kdcache.store.format.compressed_reader import reader_of
from kdcache.store.format.layout import Layout
from kdcache.tasks import RowSpace

Spans = Mapping[RowSpace, tuple[Array, Array]]
"""First rows and numbers of rows, in each row space."""


@dataclass(frozen=True)
class Wanted:
    """Documents, by their rows in the document space, and where their rows lie."""

    docs: Array
    spans: Spans


Read = Callable[[Wanted], dict[str, Array]]
ReadOne = Callable[[str, Array, Array, Array], Array]

BATCH_TOKENS = 8192  # of a training batch, or one document if it is longer


@dataclass(frozen=True)
class Source:
    """The rows of the first `parts` parts of a cache."""

    cache: Cache
    parts: int

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """The signal arrays."""
        return self.cache.layouts

    @property
    def path(self) -> Path:
        """The cache's folder; ConfigError if it is elsewhere than on a disk."""
        if not isinstance(self.cache.path, Path):
            raise ConfigError(f"{self.cache.path} is no folder: copy the cache to a disk first")
        return self.cache.path

    def files(self) -> list[Path]:
        """The shards on disk."""
        return [
            self.path / layout.key(shard)
            for layout in self.layouts.values()
            for part in range(self.parts)
            for shard in layout.part_shards(part)
        ]

    def out(self) -> dict[str, Array]:
        """Memory for a batch, touched beforehand as a training loop's has been."""
        rows = max(BATCH_TOKENS, int(self.cache.plan.per_document["doc_len"].max()))
        found = {}
        for name, layout in self.layouts.items():
            found[name] = aligned((rows, *layout.row_shape), layout.dtype)
            found[name].view(np.uint8).fill(0)
        return found

    def each(self, read: ReadOne) -> Read:
        """A reader of all arrays out of one that reads one."""
        out, spaces = self.out(), self.cache.spaces

        def read_all(wanted: Wanted) -> dict[str, Array]:
            spans = wanted.spans
            rows = {space: int(counts.sum()) for space, (_, counts) in spans.items()}
            return {
                name: read(name, *spans[spaces[name]], out[name][: rows[spaces[name]]])
                for name in self.layouts
            }

        return read_all

    def part(self, name: str, part: int) -> Array:
        """All rows of an array in a part."""
        layout = self.layouts[name]
        reader = reader_of(self.cache.path, layout, self.cache.commit_log.fingerprint)
        return reader[part * layout.part_rows : (part + 1) * layout.part_rows]

    def all_parts(self, name: str) -> Iterator[Array]:
        """The rows of an array, part by part."""
        return (self.part(name, part) for part in range(self.parts))
