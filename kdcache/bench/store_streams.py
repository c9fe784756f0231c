"""Streaming formats of other projects: a sample for each document, read by its number.

Shards and chunks are of the size their packages choose or recommend, without compression. Both
packages are for remote stores and bring much along; neither is an extra of ours, as MosaicML
streaming does not go with the versions of numpy and transformers that we need:

    pip install --no-deps litdata lightning-utilities mosaicml-streaming zstd brotli python-snappy
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.bench.report import Json, installed
from kdcache.bench.store_source import Read, Source, Wanted
from kdcache.plans import Array
from kdcache.plans.batch import epoch_order
from kdcache.store import open_cache

BATCH = 64  # documents that are put together, as many as make some 8,192 tokens
CHUNK_BYTES = "64MB"  # LitData's documentation; MosaicML's default is as large

Sample = dict[str, Array]


def mosaicml_streaming(source: Source, folder: Path) -> Read:
    """MDS shards read by `StreamingDataset` from a local folder, sample by sample."""
    return _by_number(source, _mosaicml(source, folder, batch_size=1).__getitem__)


def mosaicml_in_its_order(source: Source, folder: Path) -> Iterable[Sample]:
    """Samples as `StreamingDataset` shuffles them itself: by blocks of neighbours."""
    epoch: Iterable[Sample] = _mosaicml(source, folder, batch_size=BATCH, shuffle=True)
    return epoch


def _mosaicml(source: Source, folder: Path, **options: Any) -> Any:
    import streaming

    place = folder / "mds"
    columns = {name: f"ndarray:{layout.dtype.name}" for name, layout in source.layouts.items()}
    if not place.exists():
        with streaming.MDSWriter(out=str(place), columns=columns) as writer:
            for sample in _samples(source):
                writer.write(sample)
    streaming.base.util.clean_stale_shared_memory()  # of a run that was killed
    return streaming.StreamingDataset(local=str(place), **options)


def litdata(source: Source, folder: Path) -> Read:
    """Chunks of LitData's `Cache`, read by `StreamingDataset`, sample by sample.

    It is made for reading chunk after chunk; of many chunks single samples are slow.
    """
    return _by_number(source, _litdata(source, folder).__getitem__)


def litdata_in_its_order(source: Source, folder: Path) -> Iterable[Sample]:
    """Samples as its own loader shuffles them: chunks, and samples within a chunk."""
    from litdata import StreamingDataLoader

    dataset = _litdata(source, folder, shuffle=True)
    batches = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=list)
    return itertools.chain.from_iterable(batches)


def _litdata(source: Source, folder: Path, **options: Any) -> Any:
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
        return litdata.StreamingDataset(str(place), **options)


def kdcache_in_its_order(source: Source, folder: Path) -> Iterable[Sample]:
    """Documents as the loader shuffles them, each from anywhere: batches, as it reads them."""
    docs = _docs(source)
    mixed = docs[epoch_order(len(docs), seed=0, epoch=0)]
    cache = open_cache(source.path, teacher=source.cache.teacher)
    return (cache.rows(mixed[i : i + BATCH]) for i in range(0, len(mixed), BATCH))


ORDERS: dict[str, tuple[Callable[[Source, Path], Iterable[Sample]], str | None, int]] = {
    "kdcache": (kdcache_in_its_order, None, 1),
    "MosaicML streaming": (mosaicml_in_its_order, "mosaicml-streaming", BATCH),
    "LitData": (litdata_in_its_order, "litdata", BATCH),
}
"""Readers that shuffle an epoch themselves, their packages, and pieces that make a batch."""


def own_order(source: Source, scratch: Path, repeats: int) -> list[Json]:
    """Whole epochs in the order that each reader shuffles itself, put together in batches.

    What a package is made for: its order is less random than one over all documents.
    """
    docs = _docs(source)
    tokens = int(source.cache.plan.per_document["doc_len"][docs].sum())
    turns: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, (make, package, size) in ORDERS.items():
            if package is not None and installed(package) is None:
                continue
            folder = scratch / name.replace(" ", "-")
            folder.mkdir(exist_ok=True)
            epoch = make(source, folder)
            begin = time.perf_counter()
            _put_together(epoch, size)
            turns.setdefault(name, []).append(time.perf_counter() - begin)
    return [
        {
            "case": "an epoch in its own order",
            "reader": name,
            "tokens_per_s": tokens / statistics.median(seconds),
        }
        for name, seconds in turns.items()
    ]


def _put_together(epoch: Iterable[Sample], size: int) -> None:
    pieces = iter(epoch)
    while batch := list(itertools.islice(pieces, size)):
        if size > 1:
            for name in batch[0]:
                np.concatenate([piece[name] for piece in batch])


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
