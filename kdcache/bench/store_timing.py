"""Readers in turn over the batches of a case, and the rows of the report that come of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kdcache.bench.report import Json
from kdcache.bench.store_cases import Case
from kdcache.bench.store_source import Read
from kdcache.errors import CacheError

OURS, BASE = "kdcache", "numpy memmap"
FIRST = "kdcache, first epoch"  # every chunk checked on the way
TURN_SECONDS = 0.4  # a slow reader reads fewer batches of a case


def check(case: Case, readers: Mapping[str, Read]) -> None:
    """CacheError unless all readers give the same bytes for the first and the last batch."""
    for batch in (case.batches[0], case.batches[-1]):
        wanted = {name: rows.tobytes() for name, rows in readers[OURS](batch).items()}
        for reader, read in readers.items():
            for name, rows in read(batch).items():
                if np.ascontiguousarray(rows).tobytes() != wanted[name]:
                    raise CacheError(
                        f"{reader} gives other rows of {name} than kdcache in {case.name}: nothing "
                        "was timed"
                    )


def time_case(
    case: Case, readers: Mapping[str, Read], fresh: Callable[[], Read], repeats: int
) -> list[Json]:
    """Turns of every reader over as many batches as it reads in TURN_SECONDS, all if it can."""
    turns: dict[str, list[float]] = {}
    numbers = {name: _number(case, read) for name, read in readers.items()}
    numbers[FIRST] = len(case.batches)
    for _ in range(repeats):
        for name, number in numbers.items():
            read = fresh() if name == FIRST else readers[name]
            turns.setdefault(name, []).append(seconds_of(case, read, number))
    return rows_of(case, readers[OURS], numbers, turns)


def _number(case: Case, read: Read) -> int:
    """Batches for a turn, from the time of one; the reader is warm then."""
    took = min(seconds_of(case, read, 1) for _ in range(2))
    return max(1, min(len(case.batches), round(TURN_SECONDS / took)))


def seconds_of(case: Case, read: Read, number: int) -> float:
    begin = time.perf_counter()
    for batch in case.batches[:number]:
        read(batch)
    return time.perf_counter() - begin


def rows_of(
    case: Case, read: Read, numbers: Mapping[str, int], turns: Mapping[str, Sequence[float]]
) -> list[Json]:
    """A row for each reader, in the order they were timed."""
    width = sum(rows.nbytes for rows in read(case.batches[0]).values()) / case.tokens[0]
    tokens = {name: sum(case.tokens[:number]) for name, number in numbers.items()}
    rates = {name: [tokens[name] / s for s in seconds] for name, seconds in turns.items()}
    return [
        {
            "case": case.name,
            "reader": name,
            "tokens_per_s": statistics.median(found),
            "bytes_per_s": statistics.median(found) * width,
            "batch_ms": 1000 * statistics.median(turns[name]) / numbers[name],
            "over_memmap": statistics.median(
                ours / base for ours, base in zip(found, rates[BASE], strict=True)
            ),
            "batches": numbers[name],
        }
        for name, found in rates.items()
    ]
