"""`kdcache bench kernels`: every op against its oracle, the machine's limit and its rivals.

An op that is wrong is not timed: it is listed under `refused`. Times are medians of repeats, taken
in turn with those of the rivals and of the limit: a copy of as many bytes as the op has to move,
or a matrix product in the same dtype. On a CPU everything is measured a second time where the
allocator keeps its pages, and the best rival is the one with the least ratio of both.
"""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path

import torch

import kdcache_kernels
from kdcache.bench.kernels_case import Case
from kdcache.bench.kernels_cases import CASES, OPS
from kdcache.bench.kernels_check import Check, reason
from kdcache.bench.kernels_grid import DTYPES, NAMES, Grid
from kdcache.bench.kernels_inputs import Formula, Size, Tensors
from kdcache.bench.kernels_keeping import KEEPING, add_keeping, best_rival, measure_keeping
from kdcache.bench.kernels_notes import Notes
from kdcache.bench.report import Json, machine, new_report
from kdcache.bench.timing import (
    Call,
    Contender,
    Stopwatch,
    copy_probe,
    gemm_probe,
    interleave,
    probe_dtypes,
)
from kdcache.progress import Shown, shown

OURS = "kdcache"
OF_BEST = {**dict.fromkeys(OPS, 1.0), "topk_kl": 1.5, "topk_encode": 2.0}
"""Goals: how many times as long the best rival takes, at least."""

KEY = ("op", "variant", "dtype", "device", "rows", "vocab", "k", "hidden")


def bench_kernels(
    grid: Grid, device: torch.device, *, progress: Shown = None, notes: Path | None = None
) -> Json:
    """Check and time everything in `grid` on `device`; returns the report.

    Times are seconds, memory is bytes, errors are relative to float64. In the file `notes` rows are
    kept as they are measured: a run that was stopped goes on where it was.
    """
    progress = shown(progress)
    watch = Stopwatch(device)
    work = list(grid.work())
    # A worker knows the cases of the table only.
    twice = device.type == "cpu" and KEEPING in grid.allocators and grid.cases is CASES
    given = {name: getattr(grid, name) for name in Grid.__slots__ if name != "cases"}
    head = {"grid": given, "device": str(device), "machine": machine(), "kernels": kernels_sha256()}
    kept = Notes(notes, head)
    why = None
    with progress.bar("kernels", unit="cases", total=len(work) * (1 + twice)) as advance:
        advance(len(kept.rows))
        for case, size, dtype in work[len(kept.rows) :]:
            kept.add(measure(case, size, dtype, grid, watch))
            advance(1)
        try:
            done = len(kept.rows) - len(work)
            for row in measure_keeping(given, torch.get_num_threads(), done) if twice else ():
                kept.add(row)
                advance(1)
        except RuntimeError as error:
            why = str(error)
    found, others = kept.rows[: len(work)], kept.rows[len(work) :]
    for row, other in zip(found, others, strict=False):  # a worker may have failed
        if "wrong" not in row and "wrong" not in other:
            add_keeping(row, other)
    refused = [row for row in found if "wrong" in row]
    return report(grid, device, [row for row in found if "wrong" not in row], refused, why)


def kernels_sha256() -> str:
    """The digest of the kernels' sources: after an edit no row of before is gone on from."""
    state = hashlib.sha256()
    for path in sorted(Path(kdcache_kernels.__file__).parent.rglob("*.py")):
        state.update(path.read_bytes())
    return state.hexdigest()


def report(
    grid: Grid, device: torch.device, rows: list[Json], refused: list[Json], why: str | None = None
) -> Json:
    """The report of what `measure` gave for every case; `why` not under both allocators."""
    for row in rows:
        row["best"] = best_rival(row)
    return new_report(
        "kernels",
        device=str(device),
        settings={"repeats": grid.repeats, "k": grid.k, "allocators": list(grid.allocators)},
        left_out=[] if why is None else [f"an allocator that keeps its pages: {why}"],
        key=list(KEY),
        better={"seconds": "lower", "peak_bytes": "lower"},
        rows=rows,
        refused=refused,
        goals=_goals(rows),
    )


def _goals(rows: list[Json]) -> list[Json]:
    """Every op against its best rival, allocators included."""
    return [
        {
            "goal": f"{title(row)}, times its best rival",
            "value": row["best"]["ratio"],
            "bound": OF_BEST[row["op"]],
            "met": row["best"]["ratio"] >= OF_BEST[row["op"]],
        }
        for row in rows
        if row["best"] is not None
    ]


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
        "parts": case.parts(size, dtype, watch.device),
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


def title(row: Json) -> str:
    """A case in a few words: op, variant, dtype and sizes."""
    sizes = {"rows": "N", "vocab": "V", "k": "K", "hidden": "H"}
    shown = " ".join(f"{short}={row[name]}" for name, short in sizes.items() if name in row)
    return " ".join(filter(None, (row["op"], row["variant"], row["dtype"], shown)))
