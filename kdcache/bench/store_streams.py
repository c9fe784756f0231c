"""Streaming formats of other projects: a sample for each document, read by its number.

Shards and chunks are of the size their packages choose or recommend, without compression. Both
packages are for remote stores and bring much along; neither is an extra of ours, as MosaicML
streaming does not go with the versions of numpy and transformers that we need:

    pip install --no-deps litdata lightning-utilities mosaicml-streaming zstd brotli python-snappy
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.bench.store_source import Read, Source, Wanted
from kdcache.plans import Array

CHUNK_BYTES = "64MB"  # LitData's documentation; MosaicML's default is as large

Sample = dict[str, Array]


def mosaicml_streaming(source: Source, folder: Path) -> Read:
    """MDS shards read by `StreamingDataset` from a local folder, sample by sample."""
    import streaming

    place = folder / "mds"
    columns = {name: f"ndarray:{layout.dtype.name}" for name, layout in source.layouts.items()}
    if not place.exists():
        with streaming.MDSWriter(out=str(place), columns=columns) as writer:
            for sample in _samples(source):
                writer.write(sample)
    streaming.base.util.clean_stale_shared_memory()  # of a run that was killed
    dataset: Any = streaming.StreamingDataset(local=str(place), batch_size=1)
    return _by_number(source, dataset.__getitem__)


def litdata(source: Source, folder: Path) -> Read:
    """Chunks of LitData's `Cache`, read by `StreamingDataset`, sample by sample."""
    import litdata
    from litdata.streaming.cache import Cache

    place = folder / "litdata"
    with contextlib.redirect_stdout(io.StringIO()):
        if not place.exists():
            place.mkdir()
            writer = Cache(str(place), chunk_bytes=CHUNK_BYTES)
            for number, sample in enumerate(_samples(source)):
                writer[number] = sample
            writer.done()
            writer.merge()
        dataset: Any = litdata.StreamingDataset(str(place))
    return _by_number(source, dataset.__getitem__)


def _docs(source: Source) -> Array:
    return np.concatenate([source.cache.plan.part_docs(part) for part in range(source.parts)])


def _samples(source: Source) -> Iterator[Sample]:
    """The rows of every document, in the order they are stored."""
    for doc in _docs(source):
        yield {name: np.array(rows) for name, rows in source.cache.rows(doc[None]).items()}


def _by_number(source: Source, sample: Callable[[int], Any]) -> Read:
    places = {doc: number for number, doc in enumerate(_docs(source).tolist())}
    out = source.out()

    def read(wanted: Wanted) -> Sample:
        done = dict.fromkeys(out, 0)
        for doc in wanted.docs.tolist():
            for name, rows in sample(places[doc]).items():
                end = done[name] + len(rows)
                out[name][done[name] : end] = rows
                done[name] = end
        return {name: out[name][:end] for name, end in done.items()}

    return read
