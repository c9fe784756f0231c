"""The rest of the way: from a cold disk, to the disk, and up to the tensors of a batch."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdcache.bench.report import Json
from kdcache.bench.store_cases import Case
from kdcache.bench.store_source import BATCH_TOKENS, Read, Source
from kdcache.bench.store_timing import FIRST, OURS, rows_of, seconds_of
from kdcache.store import open_cache
from kdcache.store.format.compressed_reader import encode_rows
from kdcache.store.io.durable_writes import write_synced
from kdcache.training.documents import CachedDocuments
from kdcache.training.loader import make_loader

RAW = "raw write"
COLD_BATCHES = 8
SLOW = ("zarr-python", "zarr-python, whole chunks", "tensorstore", "LitData")
"""Readers that take half a minute and more for an epoch of scattered documents."""


def cold(
    case: Case,
    makers: Mapping[str, Callable[[], Read]],
    source: Source,
    scratch: Path,
    repeats: int,
) -> list[Json]:
    """An epoch after the system was told to forget every file: its first batches, and all.

    The first batches are of all readers. What checks or decodes whole chunks reads nearly all of
    them there, and little in the rest of the epoch; in all of it each has to read everything.
    """
    first = (case.batches[:COLD_BATCHES], case.tokens[:COLD_BATCHES])
    few = Case(name="cold cache", batches=first[0], tokens=first[1])
    whole = replace(case, name="cold cache, whole epoch")
    fast = {name: make for name, make in makers.items() if name not in SLOW}
    return [
        *_cold(few, makers, source, scratch, repeats),
        *_cold(whole, fast, source, scratch, repeats),
    ]


def _cold(
    case: Case,
    makers: Mapping[str, Callable[[], Read]],
    source: Source,
    scratch: Path,
    repeats: int,
) -> list[Json]:
    turns: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(repeats):
        for name, make in makers.items():
            read = make()
            _forget([*source.files(), *(p for p in scratch.rglob("*") if p.is_file())])
            turns[name].append(seconds_of(case, read, len(case.batches)))
            del read
    return rows_of(case, makers[OURS](), dict.fromkeys(makers, len(case.batches)), turns)


def _forget(paths: Sequence[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # what is not on disk yet is kept
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def write(source: Source, scratch: Path, repeats: int) -> list[Json]:
    """Encode and write the shards of a part, against writing the same bytes; fsync in both."""
    layouts = source.layouts.values()
    shards = [
        (layout, source.part(layout.name, 0)[i * layout.shard_rows : (i + 1) * layout.shard_rows])
        for layout in layouts
        for i in range(layout.part_rows // layout.shard_rows)
    ]
    encoded = [b"".join(encode_rows(rows, layout)) for layout, rows in shards]
    paths = [scratch / f"written.{number}" for number in range(len(shards))]

    def ours() -> None:
        for path, (layout, rows) in zip(paths, shards, strict=True):
            write_synced(path, *encode_rows(rows, layout))

    def raw() -> None:
        for path, data in zip(paths, encoded, strict=True):
            write_synced(path, data)

    turns: dict[str, list[float]] = {OURS: [], RAW: []}
    for _ in range(repeats):
        for name, write in ((OURS, ours), (RAW, raw)):
            begin = time.perf_counter()
            write()
            turns[name].append(time.perf_counter() - begin)
            for path in paths:
                path.unlink()
    size = sum(map(len, encoded))
    return [
        {
            "case": "write and fsync",
            "reader": name,
            "bytes_per_s": size / statistics.median(seconds),
            "over_raw": statistics.median(r / s for r, s in zip(turns[RAW], seconds, strict=True)),
        }
        for name, seconds in turns.items()
    ]


def load(source: Source, repeats: int) -> list[Json]:
    """Whole epochs through the loader, up to tensors of a batch: its first, and later ones."""
    plan = source.cache.plan
    docs = np.concatenate([plan.part_docs(part) for part in range(source.parts)])
    tokens = int(plan.per_document["doc_len"][docs].sum())
    size = max(1, BATCH_TOKENS * len(docs) // tokens)
    turns: dict[str, list[float]] = {OURS: [], FIRST: []}
    for _ in range(repeats):
        data = CachedDocuments(open_cache(source.path), list(source.layouts), seed=0, docs=docs)
        for name in (FIRST, OURS):
            begin = time.perf_counter()
            for _batch in make_loader(data, batch_size=size):
                pass
            turns[name].append(time.perf_counter() - begin)
    return [
        {"case": "loader", "reader": name, "tokens_per_s": tokens / statistics.median(seconds)}
        for name, seconds in turns.items()
    ]
