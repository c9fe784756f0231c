"""`kdcache bench store`: reading and writing a cache beside what else could hold the same rows.

One process; all readers take turns, so that they share what else the machine does; medians. What a
reader gives is compared with the cache before it is timed. Ratios to a numpy memmap copy are those
of the same turn: quote these, times are the machine's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kdcache.bench.report import Json, Panel, installed, new_report
from kdcache.bench.store_cache import generate
from kdcache.bench.store_cases import cases
from kdcache.bench.store_parts import cold, load, write
from kdcache.bench.store_readers import READERS
from kdcache.bench.store_source import BATCH_TOKENS, Read, Source
from kdcache.bench.store_streams import own_order
from kdcache.bench.store_timing import OURS, check, time_case
from kdcache.errors import ConfigError
from kdcache.progress import Progress, Shown, shown
from kdcache.store import Cache, open_cache

ZARR = "zarr-python"
OF_MEMMAP, OF_MEMMAP_COLD = 0.65, 0.9
COLD = "cold cache, whole epoch"
SOURCE_BYTES = 2**30  # rows of so many bytes are read; those of further parts are not


def bench_store(
    cache: str | Path | None = None,
    *,
    tokens: int = 2**20,
    repeats: int = 5,
    scratch: Path | None = None,
    progress: Shown = None,
) -> Json:
    """Measure a cache on disk, or one of about `tokens` random tokens made for it.

    Returns the report: rows by case and reader with tokens and bytes a second, `over_memmap`, and
    seconds of a batch; what was left out; goals (for the cache made here: they are about 16k
    chunks of K=64). Files are made in a folder in `scratch`, the system's temporary folder unless
    given, and removed; it is that disk which is measured.

    Raises ConfigError for sizes that make no sense, CacheError if a reader gives other rows than
    the cache holds.
    """
    progress = shown(progress)
    if tokens < BATCH_TOKENS or repeats < 1:
        raise ConfigError(
            f"tokens must be {BATCH_TOKENS} or more and repeats 1 or more; "
            f"got {tokens} and {repeats}"
        )
    try:
        folder = tempfile.TemporaryDirectory(prefix="kdcache-bench-", dir=scratch)
    except OSError as error:
        raise ConfigError(f"{scratch} cannot be written to ({error}): name another") from error
    with folder as name:
        place = Path(name)
        opened = generate(place / "store.cache", tokens) if cache is None else open_cache(cache)
        report = _measure(Source(opened, _parts(opened)), place, repeats, progress)
    report["goals"] = _goals(report) if cache is None else []
    return report


def _parts(cache: Cache) -> int:
    """Parts from the first on that are committed and of which SOURCE_BYTES hold the rows."""
    layouts = cache.layouts.values()
    part = sum(layout.part_rows * layout.row_bytes for layout in layouts)
    there = next((i for i, n in enumerate(cache.committed) if i != n), len(cache.committed))
    if not layouts or there == 0:
        raise ConfigError(f"{cache.path} holds nothing to read: build it first")
    return max(1, min(there, SOURCE_BYTES // part))


def _measure(source: Source, scratch: Path, repeats: int, progress: Progress) -> Json:
    makers, left_out = _readers(source, scratch)
    todo = cases(source)
    readers = {name: make() for name, make in makers.items()}
    rows: list[Json] = []
    with progress.bar("measuring", unit="cases", total=len(todo) + 4) as advance:
        for case in todo:
            check(case, readers)
            rows += time_case(case, readers, makers[OURS], repeats)
            advance(1)
        del readers  # what is mapped cannot be dropped from memory
        rows += cold(todo[0], makers, source, scratch, repeats)
        advance(1)
        rows += write(source, scratch, repeats)
        advance(1)
        rows += load(source, repeats)
        advance(1)
        rows += own_order(source, scratch, repeats)
        advance(1)
    sizes = {layout.name: layout.chunk_rows for layout in source.layouts.values()}
    return new_report(
        "store",
        rows=rows,
        key=["case", "reader"],
        better={"tokens_per_s": "higher", "over_memmap": "higher", "over_raw": "higher"},
        repeats=repeats,
        tokens=sum(todo[2].tokens),
        documents=sum(len(batch.docs) for batch in todo[2].batches),
        chunk_rows=sizes,
        readers={name: installed(package or "kdcache") for name, (_, package) in READERS.items()},
        left_out=left_out,
    )


def _readers(source: Source, scratch: Path) -> tuple[dict[str, Callable[[], Read]], list[str]]:
    """What makes each reader, and why some are left out."""
    makers: dict[str, Callable[[], Read]] = {}
    left_out = []
    for name, (make, package) in READERS.items():
        if package is not None and installed(package) is None:
            left_out.append(f"{name}: {package} is not installed")
            continue
        folder = scratch / name.replace(" ", "-")
        folder.mkdir()
        makers[name] = partial(make, source, folder)
    return makers, left_out


def _goals(report: Json) -> list[Json]:
    """What the store promises, and whether it was reached here."""
    rows = {(row["case"], row["reader"]): row for row in report["rows"]}
    found: list[Json] = []

    def goal(name: str, value: float, bound: float, most: bool = False) -> None:
        met = value <= bound if most else value >= bound
        found.append({"goal": name, "value": value, "bound": bound, "most": most, "met": met})

    for case in ("shuffled documents", "shuffled runs"):
        ours = rows[case, OURS]
        goal(f"{case}, of memmap", ours["over_memmap"], OF_MEMMAP)
        if (case, ZARR) in rows:
            zarr = rows[case, ZARR]["tokens_per_s"]
            goal(f"{case}, of zarr-python", ours["tokens_per_s"] / zarr, 4.0)
    goal("cold cache, whole epoch, of memmap", rows[COLD, OURS]["over_memmap"], OF_MEMMAP_COLD)
    goal("one document, ms", rows["one document", OURS]["batch_ms"], 0.3, most=True)
    goal("write and fsync, of raw", rows["write and fsync", OURS]["over_raw"], 0.6)
    goal("loader, tokens/s", rows["loader", OURS]["tokens_per_s"], 1e6)
    return found


def panels(report: Json) -> list[Panel]:
    """Every case as bars: tokens a second over those of a numpy memmap copy."""
    cases: dict[str, dict[str, float]] = {}
    for row in report["rows"]:
        if "over_memmap" in row:
            cases.setdefault(row["case"], {})[row["reader"]] = row["over_memmap"]
    return [
        Panel(title=name, unit="of a numpy memmap copy", bars=bars, lines=_line(name))
        for name, bars in cases.items()
    ]


def _line(case: str) -> dict[str, float]:
    return {"goal": OF_MEMMAP} if case.startswith("shuffled") else {}
