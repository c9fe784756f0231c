"""`kdcache bench kernels`: every op against its oracle, the machine's limit and its rivals.

An op that is wrong is not timed: it is listed under `refused`. Times are medians of repeats, taken
in turn with those of the rivals and of the limit: a copy of as many bytes as the op has to move,
or a matrix product in the same dtype.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kdcache.bench.kernels_case import Case
from kdcache.bench.kernels_cases import CASES, OPS, RIVALS
from kdcache.bench.kernels_check import Check, reason
from kdcache.bench.kernels_inputs import Formula, Size, Tensors
from kdcache.bench.report import Json, Panel, new_report
from kdcache.bench.timing import (
    Call,
    Contender,
    Stopwatch,
    copy_probe,
    gemm_probe,
    interleave,
    probe_dtypes,
)
from kdcache.errors import ConfigError, one_of
from kdcache.progress import Shown, shown, track

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
OURS = "kdcache"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What to measure. Every op meets every size and dtype it depends on.

    `rows` is of ops over a vocabulary, as many as the masked or answered tokens of a batch;
    `tokens` is of ops over hidden states, which are kept of every token.
    """

    ops: Sequence[str] = OPS
    rows: Sequence[int] = (512,)
    tokens: Sequence[int] = (4096,)
    vocab: Sequence[int] = (30522,)
    k: int = 64
    hidden: Sequence[int] = (768,)
    dtypes: Sequence[str] = ("fp32",)
    rivals: Sequence[str] = RIVALS
    repeats: int = 9
    cases: Sequence[Case] = field(default_factory=lambda: CASES, repr=False)

    def __post_init__(self) -> None:
        for op in self.ops:
            one_of("op", op, OPS)
        for dtype in self.dtypes:
            one_of("dtype", dtype, DTYPES)
        for rival in self.rivals:
            one_of("rival", rival, RIVALS)
        lists = (self.rows, self.tokens, self.vocab, self.hidden)
        sizes = (self.k, self.repeats, *itertools.chain(*lists))
        if min(sizes) < 1 or not all((*lists, self.dtypes, self.ops)):
            raise ConfigError("rows, vocab, k, hidden and repeats must be at least 1")
        if self.k >= min(self.vocab):  # the plain formulas have no case for an empty tail
            raise ConfigError(f"k must be below the vocabulary, {min(self.vocab)}; got {self.k}")

    def work(self) -> Iterator[tuple[Case, Size, str]]:
        """Every case with every size that it depends on, and every dtype."""
        for case in (case for case in self.cases if case.op in self.ops):
            vocabs = self.vocab if "vocab" in case.sizes else self.vocab[:1]
            widths = self.hidden if "hidden" in case.sizes else self.hidden[:1]
            dtypes = [dtype for dtype in self.dtypes if DTYPES[dtype] in case.dtypes]
            counts = self.rows if "vocab" in case.sizes else self.tokens
            for dtype, rows, vocab, hidden in itertools.product(dtypes, counts, vocabs, widths):
                yield case, Size(rows=rows, vocab=vocab, k=self.k, hidden=hidden), dtype


def default_grid(device: torch.device, **changes: Any) -> Grid:
    """The grid for a device, with the changes that are not None; `rows` are those of all ops."""
    on_gpu: Json = {"rows": (8192,), "tokens": (8192,), "vocab": (30522, 128256)}
    on_gpu |= {"dtypes": ("bf16",), "repeats": 25}
    given = {name: value for name, value in changes.items() if value is not None}
    if "rows" in given:
        given["tokens"] = given["rows"]
    return Grid(**{**(on_gpu if device.type == "cuda" else {}), **given})


def bench_kernels(grid: Grid, device: torch.device, *, progress: Shown = None) -> Json:
    """Check and time everything in `grid` on `device`; returns the report.

    Times are seconds, memory is bytes, errors are relative to float64.
    """
    progress = shown(progress)
    watch = Stopwatch(device)
    work = list(grid.work())
    rows: list[Json] = []
    refused: list[Json] = []
    for case, size, dtype in track(progress, work, "kernels", unit="cases", total=len(work)):
        row = measure(case, size, dtype, grid, watch)
        (refused if "wrong" in row else rows).append(row)
    return report(grid, device, rows, refused)


def report(grid: Grid, device: torch.device, rows: list[Json], refused: list[Json]) -> Json:
    """The report of what `measure` gave for every case."""
    return new_report(
        "kernels",
        device=str(device),
        settings={"repeats": grid.repeats, "k": grid.k},
        key=["op", "variant", "dtype", "device", "rows", "vocab", "k", "hidden"],
        better={"seconds": "lower", "peak_bytes": "lower"},
        rows=rows,
        refused=refused,
    )


def measure(case: Case, size: Size, dtype: str, grid: Grid, watch: Stopwatch) -> Json:
    """One row of the report: what was measured, or under `wrong` why it was not."""
    device = watch.device
    rivals = [rival for rival in case.rivals if rival.name in grid.rivals]
    absent = {v.name: why for v in rivals if (why := v.missing(device)) is not None}
    ready = [rival for rival in rivals if rival.name not in absent]
    if any(rival.compiled for rival in ready):
        torch.compiler.reset()  # sizes of earlier cases would use up its limit of compilations
    x = case.draw(size, DTYPES[dtype], device, any(rival.dense for rival in ready))
    name = {
        "op": case.op,
        "variant": case.variant,
        "dtype": dtype,
        "device": device.type,
        **{what: getattr(size, what) for what in case.sizes},
    }
    check = Check(case, x, DTYPES[dtype])
    if wrong := check.wrong():
        return {**name, "wrong": wrong}
    sides: dict[str, Json] = {rival: {"absent": why} for rival, why in absent.items()}
    sides |= {rival.name: check.rival(rival) for rival in ready}
    runs = {OURS: _contender(case, case.ours, x)}
    runs |= {v.name: _contender(case, v.formula, x) for v in ready if "error" in sides[v.name]}
    timed = _timed(case, size, DTYPES[dtype], runs, sides, grid.repeats, watch)
    return {**name, **timed, "error": check.error}


def _contender(case: Case, formula: Formula, x: Tensors) -> Contender:
    def prepare() -> Call:
        fresh = case.fresh(formula, x)
        return lambda: case.run(formula, fresh)

    return Contender(prepare)


def _peaks(runs: dict[str, Contender], sides: dict[str, Json], watch: Stopwatch) -> Json:
    """Peak memory of every contender, warmed up; a rival that fails at full size leaves `runs`."""
    peaks: Json = {}
    for name, contender in list(runs.items()):
        try:
            contender.prepare()()
            peaks[name] = watch.peak_bytes(contender.prepare())
        except Exception as error:  # out of memory, most of all
            if name == OURS:
                raise
            sides[name] = {"failed": reason(error)}
            del runs[name]
    return peaks


def _times(
    case: Case,
    size: Size,
    dtype: torch.dtype,
    runs: dict[str, Contender],
    repeats: int,
    watch: Stopwatch,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every contender, and those that the limits allow, all measured in turn."""
    moved, flops = case.bytes(size, dtype.itemsize), case.flops(size)
    probes = {"copy": copy_probe(moved, watch.device)}
    shares = {"copy": 1.0}
    for kind in probe_dtypes(dtype, watch.device) if flops else ():
        name = f"gemm {NAMES[kind]}"
        probes[name], done = gemm_probe(kind, watch.device)
        shares[name] = flops / done
    seconds = interleave(watch, {**runs, **probes}, repeats)
    limits = {n: statistics.median(seconds[n]) * share for n, share in shares.items()}
    return seconds, limits


def _timed(
    case: Case,
    size: Size,
    dtype: torch.dtype,
    runs: dict[str, Contender],
    sides: dict[str, Json],
    repeats: int,
    watch: Stopwatch,
) -> Json:
    """Times, memory, the limit and the ratios to the rivals."""
    peaks = _peaks(runs, sides, watch)
    seconds, limits = _times(case, size, dtype, runs, repeats, watch)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    mine = medians[OURS]
    for name in runs.keys() - {OURS}:
        sides[name] |= {
            "seconds": medians[name],
            "ratio": medians[name] / mine,
            "peak_bytes": peaks[name],
        }
    bound, limit = _bound(limits)
    moved, flops = case.bytes(size, dtype.itemsize), case.flops(size)
    return {
        "seconds": mine,
        "fastest": min(seconds[OURS]),
        "slowest": max(seconds[OURS]),
        "bytes": moved,
        "bytes_per_s": moved / mine,
        "flops": flops,
        "flops_per_s": flops / mine,
        "bound": bound,
        "limit_seconds": limit,
        "share_of_limit": limit / mine,
        "peak_bytes": peaks[OURS],
        "rivals": sides,
    }


def _bound(limits: dict[str, float]) -> tuple[str, float]:
    """What holds an op back, and its seconds: of the products the fastest, then the slower kind."""
    products = [name for name in limits if name.startswith("gemm")]
    kinds = ["copy", *([min(products, key=limits.__getitem__)] if products else [])]
    bound = max(kinds, key=limits.__getitem__)
    return bound, limits[bound]


def panels(found: Json) -> list[Panel]:
    """The report as bars: ours and every rival that was timed, the limit across them."""
    return [
        Panel(
            title=title(row),
            unit="milliseconds",
            bars={
                OURS: 1000 * row["seconds"],
                **{n: 1000 * v["seconds"] for n, v in row["rivals"].items() if "seconds" in v},
            },
            lines={f"limit ({row['bound']})": 1000 * row["limit_seconds"]},
        )
        for row in found["rows"]
    ]


def title(row: Json) -> str:
    """A case in a few words: op, variant, dtype and sizes."""
    sizes = {"rows": "N", "vocab": "V", "k": "K", "hidden": "H"}
    shown = " ".join(f"{short}={row[name]}" for name, short in sizes.items() if name in row)
    return " ".join(filter(None, (row["op"], row["variant"], row["dtype"], shown)))
