"""Six ways to read the same rows: kdcache's and those a training loop might use instead.

A reader is made of a `Source` and a folder to put files in of its own; zarr-python and tensorstore
read the cache itself. It gives the rows of every array for some spans of its row space, one after
the other; those that can, write them to memory that is there beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import ConfigError
from kdcache.plans import Array
from kdcache.store import Cache
from kdcache.store.layout import Layout
from kdcache.store.packed import reader_of
from kdcache.store.shard import aligned
from kdcache.store.spans import Pieces, cut_spans
from kdcache.tasks import RowSpace

Spans = Mapping[RowSpace, tuple[Array, Array]]
"""First rows and numbers of rows, in each row space."""

Read = Callable[[Spans], dict[str, Array]]
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
        rows = max(BATCH_TOKENS, int(self.cache.plan.examples["doc_len"].max()))
        found = {}
        for name, layout in self.layouts.items():
            found[name] = aligned((rows, *layout.row_shape), layout.dtype)
            found[name].view(np.uint8).fill(0)
        return found

    def each(self, read: ReadOne) -> Read:
        """A reader of all arrays out of one that reads one."""
        out, spaces = self.out(), self.cache.spaces

        def read_all(spans: Spans) -> dict[str, Array]:
            rows = {space: int(counts.sum()) for space, (_, counts) in spans.items()}
            return {
                name: read(name, *spans[spaces[name]], out[name][: rows[spaces[name]]])
                for name in self.layouts
            }

        return read_all

    def part(self, name: str, part: int) -> Array:
        """All rows of an array in a part."""
        layout = self.layouts[name]
        reader = reader_of(self.cache.path, layout, self.cache.ledger.facts)
        return reader[part * layout.part_rows : (part + 1) * layout.part_rows]

    def all_parts(self, name: str) -> Iterator[Array]:
        """The rows of an array, part by part."""
        return (self.part(name, part) for part in range(self.parts))


def kdcache(source: Source, folder: Path) -> Read:
    """Every chunk is checked when first touched, so a new reader checks all that it reads."""
    readers = {
        name: reader_of(source.cache.path, layout, source.cache.ledger.facts)
        for name, layout in source.layouts.items()
    }

    out, spaces = source.out(), source.cache.spaces

    def read(spans: Spans) -> dict[str, Array]:
        cuts: dict[tuple[RowSpace, int], Pieces] = {}
        found = {}
        for name, reader in readers.items():
            place = spaces[name], reader.layout.chunk_rows
            if place not in cuts:
                cuts[place] = cut_spans(*spans[place[0]], place[1])
            found[name] = reader.gather(cuts[place], out[name][: cuts[place].total])
        return found

    return read


def numpy_memmap(source: Source, folder: Path) -> Read:
    """One flat file for each array, mapped; rows are copied span by span. Nothing is checked."""
    maps = {}
    for name, layout in source.layouts.items():
        path = folder / f"{name.replace('/', '.')}.bin"
        if not path.exists():
            with path.open("wb") as file:
                for rows in source.all_parts(name):
                    file.write(rows.data)
        flat = np.memmap(path, layout.dtype, mode="r")
        maps[name] = np.asarray(flat).reshape(-1, *layout.row_shape)  # slices of it cost less

    def read(name: str, starts: Array, counts: Array, out: Array) -> Array:
        return _copy(maps[name], starts, counts, out)

    return source.each(read)


def _copy(rows: Any, starts: Array, counts: Array, out: Array) -> Array:
    done = 0
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        out[done : done + count] = rows[start : start + count]
        done += count
    return out


def zarr_python(source: Source, folder: Path) -> Read:
    """The cache's own files through zarr-python, which checks a chunk each time it reads it."""
    import zarr

    arrays: dict[str, Any] = {
        name: zarr.open_array(source.path / layout.name, mode="r")
        for name, layout in source.layouts.items()
    }

    def read(name: str, starts: Array, counts: Array, out: Array) -> Array:
        index = _index(starts, counts)
        chosen = arrays[name] if isinstance(index, slice) else arrays[name].oindex
        found: Array = chosen[index]
        return found

    return source.each(read)


def tensorstore(source: Source, folder: Path) -> Read:
    """The cache's own files through tensorstore, which checks a chunk each time it reads it."""
    import tensorstore as ts

    def opened(layout: Layout) -> Any:
        store = {"driver": "file", "path": str(source.path / layout.name)}
        return ts.open({"driver": "zarr3", "kvstore": store}, read=True, open=True).result()

    arrays = {name: opened(layout) for name, layout in source.layouts.items()}

    def read(name: str, starts: Array, counts: Array, out: Array) -> Array:
        found: Array = arrays[name][_index(starts, counts)].read().result()
        return found

    return source.each(read)


def _index(starts: Array, counts: Array) -> slice | Array:
    """A slice where the spans follow one another, which both engines read faster."""
    starts, counts = starts.astype(np.int64), counts.astype(np.int64)
    if (starts[1:] == (starts + counts)[:-1]).all():
        return slice(int(starts[0]), int(starts[-1] + counts[-1]))
    shift = starts - (np.cumsum(counts) - counts)
    index: Array = np.arange(int(counts.sum())) + np.repeat(shift, counts)
    return index


def arrow_ipc(source: Source, folder: Path) -> Read:
    """An Arrow IPC file for each array, mapped, rows as fixed-size binary. Nothing is checked."""
    import pyarrow as pa

    columns = {}
    for name, layout in source.layouts.items():
        path = folder / f"{name.replace('/', '.')}.arrow"
        kind = pa.binary(layout.row_bytes)
        schema = pa.schema([("rows", kind)])
        if not path.exists():
            with pa.ipc.new_file(str(path), schema) as file:
                for rows in source.all_parts(name):
                    data = [None, pa.py_buffer(np.ascontiguousarray(rows))]
                    column = pa.Array.from_buffers(kind, len(rows), data)
                    file.write_batch(pa.record_batch([column], schema=schema))
        columns[name] = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("rows")

    def read(name: str, starts: Array, counts: Array, out: Array) -> Array:
        column, done = columns[name], 0
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            for piece in column.slice(start, count).chunks:
                data = np.frombuffer(piece.buffers()[1], out.dtype).reshape(-1, *out.shape[1:])
                end = done + len(piece)
                out[done:end] = data[piece.offset : piece.offset + len(piece)]
                done = end
        return out

    return source.each(read)


def safetensors(source: Source, folder: Path) -> Read:
    """A safetensors file for each part, rows read by slices. Nothing is checked."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    slices: list[dict[str, Any]] = []
    for part in range(source.parts):
        path = folder / f"part-{part:05d}.safetensors"
        if not path.exists():
            save_file({name: source.part(name, part) for name in source.layouts}, path)
        file: Any = safe_open(str(path), "numpy")
        slices.append({name: file.get_slice(name) for name in source.layouts})

    def read(name: str, starts: Array, counts: Array, out: Array) -> Array:
        size, done = source.layouts[name].part_rows, 0
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            part, first = divmod(start, size)
            out[done : done + count] = slices[part][name][first : first + count]
            done += count
        return out

    return source.each(read)


READERS: dict[str, tuple[Callable[[Source, Path], Read], str | None]] = {
    "kdcache": (kdcache, None),
    "numpy memmap": (numpy_memmap, None),
    "zarr-python": (zarr_python, "zarr"),
    "tensorstore": (tensorstore, "tensorstore"),
    "Arrow IPC": (arrow_ipc, "pyarrow"),
    "safetensors": (safetensors, "safetensors"),
}
"""Every reader, ours first, and the package it needs."""
