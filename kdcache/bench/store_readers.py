"""Ways to read the same rows: kdcache's and those a training loop might use instead.

A reader is made of a `Source` and a folder to put files in of its own; zarr-python and tensorstore
read the cache itself. It gives the rows of every array for some spans of its row space, one after
the other; those that can, write them to memory that is there beforehand. Ours is given the
documents and finds the spans itself, as any user's call does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.bench.store_source import Read, Source
from kdcache.bench.store_streams import litdata, mosaicml_streaming
from kdcache.plans import Array
from kdcache.store import open_cache
from kdcache.store.format.compressed_reader import CACHED_BYTES
from kdcache.store.format.layout import Layout
from kdcache.store.format.spans import cut_spans


def kdcache(source: Source, folder: Path) -> Read:
    """Every chunk is checked when first touched, so a new reader checks all that it reads."""
    cache, out = open_cache(source.path, teacher=source.cache.teacher), source.out()
    return lambda wanted: cache.rows(wanted.docs, out=out)


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


def zarr_chunks(source: Source, folder: Path) -> Read:
    """The same by whole chunks, of which the CACHED_BYTES used last stay in memory."""
    import zarr

    def cached(layout: Layout) -> Callable[[int], Array]:
        array: Any = zarr.open_array(source.path / layout.name, mode="r")
        rows = layout.chunk_rows

        @lru_cache(max(1, CACHED_BYTES // layout.chunk_bytes))
        def chunk(number: int) -> Array:
            found: Array = array[number * rows : (number + 1) * rows]
            return found

        return chunk

    chunks = {name: cached(layout) for name, layout in source.layouts.items()}

    def read(name: str, starts: Array, counts: Array, out: Array) -> Array:
        pieces = cut_spans(starts, counts, source.layouts[name].chunk_rows)
        for number, first, rows, at in pieces.cuts:
            out[at : at + rows] = chunks[name](number)[first : first + rows]
        return out

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
    "zarr-python, whole chunks": (zarr_chunks, "zarr"),
    "tensorstore": (tensorstore, "tensorstore"),
    "Arrow IPC": (arrow_ipc, "pyarrow"),
    "safetensors": (safetensors, "safetensors"),
    "MosaicML streaming": (mosaicml_streaming, "mosaicml-streaming"),
    "LitData": (litdata, "litdata"),
}
"""Every reader, ours first, and the package it needs."""
