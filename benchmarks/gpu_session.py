"""Everything worth asking of a GPU, in one run of under nine minutes: right first, then fast.

    python3 benchmarks/gpu_session.py OUT

Writes a JSON file for every stage, and kernels.json, a report of `kdcache bench kernels`, anew
after every item, so that a killed run keeps what it found. A failure is recorded and the next item
runs; every stage has a process of its own. Needs torch and triton, and Liger where it is to be
timed; nothing of a cache. `--device cpu --rows 24` walks through some of it without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402  # after the path that finds our own packages

from kdcache.bench.kernels import measure, report  # noqa: E402
from kdcache.bench.kernels_case import Case  # noqa: E402
from kdcache.bench.kernels_cases import CASES, RIVALS  # noqa: E402
from kdcache.bench.kernels_check import Check, reason, relative_error  # noqa: E402
from kdcache.bench.kernels_grid import DTYPES, Grid  # noqa: E402
from kdcache.bench.kernels_inputs import Size  # noqa: E402
from kdcache.bench.report import save_report  # noqa: E402
from kdcache.bench.timing import Stopwatch  # noqa: E402

Json = dict[str, Any]

VOCABS = (30522, 128256, 151936, 50257, 32000, 1271)
CHECKED_ROWS = 72
HUGE = ((16745, 128256), (14135, 151936))  # rows x vocabulary just beyond 2**31
WARM_ROWS = 512
RACE_REPEATS = 300
GRACE = 35  # seconds to start a stage, and for its last item
BAD = {"wrong", "failed"}
CHUNKED_ROWS = 3000  # several chunks of a fused head
HEADLINES = {("topk_kl", "T=1"), ("linear_topk_kl", "T=1"), ("hidden_mse", "row scale"),
             ("topk_encode", "")}  # fmt: skip
"""Cases worth the seconds that torch.compile takes."""


class Session:
    """Where a stage runs, what it found, and when it has to end."""

    def __init__(self, out: Path, device: str, rows: int | None) -> None:
        self.out, self.device, self.rows = out, torch.device(device), rows

    def run(self, stage: str, seconds: float) -> bool:
        """Run the items of a stage until its seconds are over; was everything right?"""
        done: list[Json] = []
        begun = time.monotonic()
        for item in STAGES[stage].items():
            label = " ".join(map(str, item))
            took = time.monotonic() - begun
            found = {"left_out": "out of time"} if took > seconds else self._one(stage, item)
            done.append({"item": label, **found})
            if BAD & set(found):
                print(f"{stage}: {label}: {found}", flush=True)
            save_report(self.out / f"{stage}.json", {"seconds": took, "items": done})
        kinds = {kind: sum(kind in item for item in done) for kind in ("left_out", *sorted(BAD))}
        print(f"{stage}: {len(done)} items, {time.monotonic() - begun:.0f} s, {kinds}", flush=True)
        return not any(BAD & set(item) for item in done)

    def _one(self, stage: str, item: tuple[Any, ...]) -> Json:
        try:
            return STAGES[stage].run(self, *item)
        except Exception as error:  # recorded, and the next one runs
            return {"failed": reason(error)}

    def size(self, rows: int, vocab: int = 30522, hidden: int = 768) -> Size:
        """A size, its rows no more than asked for on the command line."""
        rows = min(rows, self.rows or rows)
        return Size(rows=rows, vocab=vocab, k=min(64, vocab), hidden=hidden)


def case_of(op: str, variant: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if (case.op, case.variant) == (op, variant))


def checked(session: Session, op: str, variant: str, dtype: str, rows: int, vocab: int) -> Json:
    """What one case is off by, at one size."""
    case, kind = case_of(op, variant), DTYPES[dtype]
    x = case.draw(session.size(rows, vocab), kind, session.device, False)
    check = Check(case, x, kind)
    wrong = check.wrong()
    return {"wrong": wrong} if wrong else {"error": check.error}


def to_check() -> Iterator[tuple[str, str, str, int, int]]:
    """Every case: bf16 at every vocabulary, the other dtypes at two."""
    for vocab in VOCABS:
        for dtype, case in itertools.product(DTYPES if vocab in VOCABS[1:3] else ("bf16",), CASES):
            if vocab != VOCABS[1] and "vocab" not in case.sizes:
                continue
            if DTYPES[dtype] in case.dtypes:
                chunks = "head" in case.leaves and vocab == VOCABS[0]
                rows = CHUNKED_ROWS if chunks else CHECKED_ROWS
                yield case.op, case.variant, dtype, rows, vocab


def huge() -> Iterator[tuple[str, str, str, int, int]]:
    """More elements than 32 bits can count."""
    ops = (("topk_kl", "T=1"), ("topk_kl", "inplace"), ("topk_encode", ""))
    for (rows, vocab), (op, variant) in itertools.product(HUGE, ops):
        yield op, variant, "bf16", rows, vocab


def calls(*, training: bool = False, op: str = "") -> Iterator[tuple[str, str, int]]:
    """Cases at two vocabularies; `training`: those with gradients that keep their inputs."""
    for case in CASES:
        if (training and (case.own or not case.leaves)) or (op and case.op != op):
            continue
        for vocab in VOCABS[:2] if "vocab" in case.sizes else VOCABS[:1]:
            yield case.op, case.variant, vocab


def warmed(session: Session, case: Case, vocab: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call of our op that has run often enough to be compiled."""
    x = case.draw(session.size(WARM_ROWS, vocab), torch.bfloat16, session.device, False)
    fresh = case.fresh(case.ours, x)
    for _ in range(3):
        case.run(case.ours, case.fresh(case.ours, x))
    return lambda: case.run(case.ours, fresh)


def captured(session: Session, op: str, variant: str, vocab: int) -> Json:
    """Loss and gradients of a replayed CUDA graph against those of the same call outside of it."""
    case = case_of(op, variant)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call = warmed(session, case, vocab)
        want = [t.clone() for t in call()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        got = call()
    for t in got:
        t.fill_(float("nan") if t.is_floating_point() else 0)
    graph.replay()
    torch.cuda.synchronize()
    off = max(map(relative_error, got, want))
    return {"error": off} if off < 1e-3 else {"wrong": f"the replay is off by {off}"}


def unsynchronised(session: Session, op: str, variant: str, vocab: int) -> Json:
    """Does the op wait for the GPU? torch raises if it does."""
    call = warmed(session, case_of(op, variant), vocab)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:  # an encoder looks for rows that are no distributions
        found = "wrong" if case_of(op, variant).leaves else "synchronises"
        return {found: reason(error)}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"synchronises": "never"}


def raced(session: Session, op: str, variant: str, vocab: int) -> Json:
    """The same call over and over: bits that change are a race."""
    call = warmed(session, case_of(op, variant), vocab)
    first = [t.clone() for t in call()]
    for turn in range(RACE_REPEATS):
        if not all(torch.equal(a, b) for a, b in zip(first, call(), strict=True)):
            return {"wrong": f"other bits in repeat {turn}"}
    return {"repeats": RACE_REPEATS, "equal": True}


def to_time() -> Iterator[tuple[str, str, int, int]]:
    """Headlines first, then the rest, then wide hidden states."""
    order = sorted(CASES, key=lambda case: (case.op, case.variant) not in HEADLINES)
    wide = [(case, 4096) for case in CASES if "head" in case.leaves]
    for case, hidden in [*((case, 768) for case in order), *wide]:
        for vocab in VOCABS[:2] if "vocab" in case.sizes else VOCABS[:1]:
            yield case.op, case.variant, vocab, hidden


@cache
def timed_so_far(session: Session) -> tuple[Stopwatch, list[Json], list[Json]]:
    """One stopwatch, and the rows of the report, for the whole stage."""
    return Stopwatch(session.device), [], []


def timed(session: Session, op: str, variant: str, vocab: int, hidden: int) -> Json:
    """A case against its limit and its rivals, into kernels.json."""
    watch, rows, refused = timed_so_far(session)
    case, size = case_of(op, variant), session.size(8192, vocab, hidden)
    compiled = (op, variant) in HEADLINES and hidden == 768
    rivals = RIVALS if compiled else tuple(name for name in RIVALS if name != "torch.compile")
    # A CPU multiplies bf16 so slowly that a walk through the script would end at the first head.
    dtype, repeats = ("bf16", 21) if session.device.type == "cuda" else ("fp32", 3)
    grid = Grid(rows=(size.rows,), dtypes=(dtype,), repeats=repeats, rivals=rivals)
    row = measure(case, size, dtype, grid, watch)
    torch.cuda.empty_cache()
    (refused if "wrong" in row else rows).append(row)
    save_report(session.out / "kernels.json", report(grid, session.device, rows, refused))
    if "wrong" in row:
        return row
    ratios = {name: round(v["ratio"], 2) for name, v in row["rivals"].items() if "ratio" in v}
    reached = f"{1e3 * row['seconds']:.3f} ms, {row['share_of_limit']:.0%} of {row['bound']}"
    print(op, variant, vocab, hidden, reached, ratios, flush=True)
    return {"seconds": row["seconds"], "share_of_limit": row["share_of_limit"]}


class Stage(NamedTuple):
    """What to do, with each of which items, for how many seconds at most; only on a GPU?"""

    run: Callable[..., Json]
    items: Callable[[], Iterable[tuple[Any, ...]]]
    seconds: float
    gpu: bool = True


STAGES = {
    "checks": Stage(checked, to_check, 150, gpu=False),
    "beyond_2_31": Stage(checked, huge, 40),
    "graphs": Stage(captured, partial(calls, training=True), 25),
    "synchronisation": Stage(unsynchronised, calls, 20),
    "races": Stage(raced, partial(calls, op="topk_kl", training=True), 20),
    "times": Stage(timed, to_time, 200, gpu=False),
}


def main() -> None:
    """Run every stage in a process of its own; exits with 1 if anything was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help="one stage only, in this process")
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds of a stage")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, help="no more rows than this anywhere")
    given = parser.parse_args()
    if given.stage:
        seconds = given.scale * STAGES[given.stage].seconds
        sys.exit(not Session(given.out, given.device, given.rows).run(given.stage, seconds))
    bad = []
    for name, stage in STAGES.items():
        if stage.gpu and not given.device.startswith("cuda"):
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--stage", name]
        try:  # an illegal access poisons its process, and a kernel may hang
            code = subprocess.run(command, timeout=given.scale * stage.seconds + GRACE).returncode
        except subprocess.TimeoutExpired:
            print(f"{name}: killed, it did not end", flush=True)
            code = 1
        bad += [name] if code else []
    sys.exit(f"not right: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
