"""What is asked of a GPU: stages of many items each, for `gpu_session.py`."""

from __future__ import annotations

import itertools
import statistics
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
from kdcache.bench.report import new_report, save_report  # noqa: E402
from kdcache.bench.timing import Contender, Stopwatch, interleave  # noqa: E402
from kdcache_kernels.topk_kl.spec import Spec, Teacher  # noqa: E402

Json = dict[str, Any]

VOCABS = (30522, 128256, 151936, 50257, 32000, 1271)
PLACES = ("in place", "out of place")
SHAPED = (30522, 50257, 128256, 262144)
CHECKED_ROWS = 72
HUGE = ((16745, 128256), (14135, 151936))  # rows x vocabulary just beyond 2**31
WARM_ROWS = 512
RACE_REPEATS = 300
SHAPES = (
    (2048, 4, 128), (2048, 8, 80), (4096, 4, 128), (4096, 4, 168), (4096, 4, 255), (4096, 8, 80),
    (4096, 8, 128), (4096, 16, 64), (8192, 8, 255), (8192, 16, 64), (8192, 16, 128), (8192, 32, 64),
    (16384, 16, 128), (16384, 32, 64),
)  # fmt: skip
"""Elements of a tile of topk_kl, its warps, registers of a thread."""
BAD = {"wrong", "failed"}
CHUNKED_ROWS = 3000  # several chunks of a fused head
HEADLINES = (
    ("topk_kl", "T=1"), ("linear_topk_kl", "T=1"), ("hidden_mse", "row scale"), ("topk_encode", "")
)  # fmt: skip
"""Cases worth the seconds that torch.compile takes."""


class Session:
    """Where a stage runs, what it found, and when it has to end."""

    def __init__(self, out: Path, device: str, rows: int | None, shard: tuple[int, int]) -> None:
        self.out, self.device, self.rows, self.shard = out, torch.device(device), rows, shard

    def run(self, stage: str, seconds: float) -> bool:
        """Run the items of a stage until its seconds are over; was everything right?"""
        done: list[Json] = []
        begun = time.monotonic()
        first, step = self.shard
        path = self.out / (f"{stage}.json" if step == 1 else f"{stage}.{first}.json")
        for item in list(STAGES[stage].items())[first::step]:
            label = " ".join(map(str, item))
            took = time.monotonic() - begun
            found = {"left_out": "out of time"} if took > seconds else self._one(stage, item)
            done.append({"item": label, **found})
            if BAD & set(found):
                print(f"{stage}: {label}: {found}", flush=True)
            save_report(path, new_report(stage, seconds=took, items=done))
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


def to_time() -> Iterator[tuple[str, str, int, int, str]]:
    """Headlines first, then the rest and wide hidden states; last what torch.compile makes."""
    order = sorted(CASES, key=lambda case: (case.op, case.variant) not in HEADLINES)
    wide = [(case, 4096) for case in CASES if "head" in case.leaves]
    for case, hidden in [*((case, 768) for case in order), *wide]:
        for vocab in VOCABS[:2] if "vocab" in case.sizes else VOCABS[:1]:
            yield case.op, case.variant, vocab, hidden, "eager"
    for op, variant in HEADLINES:
        yield op, variant, VOCABS[0], 768, "compiled"


@cache
def timed_so_far(session: Session) -> tuple[Stopwatch, dict[Any, Json], dict[Any, Json]]:
    """One stopwatch, and the rows of the report, for the whole stage."""
    return Stopwatch(session.device), {}, {}


def timed(session: Session, op: str, variant: str, vocab: int, hidden: int, rivals: str) -> Json:
    """A case against its limit and its rivals, into kernels.json; again with one more rival."""
    watch, rows, refused = timed_so_far(session)
    case, size = case_of(op, variant), session.size(8192, vocab, hidden)
    left_out = () if rivals == "compiled" else ("torch.compile",)
    # A CPU multiplies bf16 so slowly that a walk through the script would end at the first head.
    dtype, repeats = ("bf16", 21) if session.device.type == "cuda" else ("fp32", 3)
    grid = Grid(
        rows=(size.rows,),
        dtypes=(dtype,),
        repeats=repeats,
        rivals=tuple(name for name in RIVALS if name not in left_out),
    )
    row = measure(case, size, dtype, grid, watch)
    torch.cuda.empty_cache()
    (refused if "wrong" in row else rows)[op, variant, vocab, hidden] = row
    found = report(grid, session.device, list(rows.values()), list(refused.values()))
    save_report(session.out / "kernels.json", found)
    if "wrong" in row:
        return row
    ratios = {name: round(v["ratio"], 2) for name, v in row["rivals"].items() if "ratio" in v}
    reached = f"{1e3 * row['seconds']:.3f} ms, {row['share_of_limit']:.0%} of {row['bound']}"
    print(op, variant, vocab, hidden, reached, ratios, flush=True)
    return {"seconds": row["seconds"], "share_of_limit": row["share_of_limit"]}


def shapes(places: tuple[str, ...] = PLACES) -> Iterator[tuple[Any, ...]]:
    """Every way to run a row of topk_kl; in place and out of place it is the same code."""
    for vocab, place in itertools.product(SHAPED, places):
        for shape in SHAPES:
            yield place, vocab, *shape


@cache
def drawn(session: Session, size: Size) -> dict[str, torch.Tensor]:
    """Soft labels of that size, drawn once."""
    return case_of("topk_kl", "T=1").draw(size, torch.bfloat16, session.device, False)


def shaped(
    session: Session, place: str, vocab: int, *shape: int, repeats: int = 11, rows: int = 8192
) -> Json:
    """Seconds of topk_kl with rows run in one way, the gradient that of plain torch."""
    from kdcache_kernels.topk_kl import _triton, reference

    size = session.size(rows, vocab)
    x = drawn(session, size)
    how = _triton.plan(vocab, _triton.slack(x["logits"], None), _triton.Shape(*shape))
    teacher = Teacher(x["ids"], x["logprobs"], x["tail_logmass"])
    weight = torch.full((size.rows,), 1 / size.rows, device=session.device)
    spec = Spec(1.0, "bucket", "forward", 1.0, 0.0, -100)
    apart = torch.empty_like(x["logits"])

    def call(logits: torch.Tensor) -> torch.Tensor:
        out = logits if place == "in place" else apart
        _triton.launch(logits, teacher, weight, None, spec, out, how)
        return out

    few = slice(0, 8)
    want = torch.empty(8, vocab, device=session.device, dtype=torch.float64)
    some = Teacher(*(t[few].double() if t.is_floating_point() else t[few] for t in teacher))
    logits = x["logits"][few].double()
    reference.topk_kl(logits, some, weight[few].double(), None, spec, want, False)
    off = relative_error(call(x["logits"].clone())[few], want)
    if not off < 1e-2:
        return {"wrong": f"off by {off}"}

    def prepare() -> Callable[[], torch.Tensor]:
        logits = x["logits"].clone() if place == "in place" else x["logits"]
        return lambda: call(logits)

    if repeats == 0:
        return {"error": off}
    times = interleave(Stopwatch(session.device), {"": Contender(prepare)}, repeats)[""]
    return {"seconds": statistics.median(times), "error": off}


def compiled(session: Session, *item: Any) -> Json:
    """The same for a few rows, so that it is compiled."""
    return shaped(session, *item, repeats=0, rows=64)


def products(session: Session, vocab: int) -> Json:
    """Seconds of a head's three matrix products in bf16, 4096 rows and H = 768."""
    n, h = session.size(4096).rows, 768
    draw = partial(torch.randn, device=session.device)
    x, head, bias, logits = (
        draw(*shape).bfloat16() for shape in ((n, h), (vocab, h), (vocab,), (n, vocab))
    )
    d_x, d_head = torch.empty_like(x), draw(vocab, h)
    calls: dict[str, Callable[[], Any]] = {
        "logits": lambda: torch.mm(x, head.t(), out=logits),
        "logits_and_bias": lambda: torch.addmm(bias, x, head.t(), out=logits),
        "hidden": lambda: torch.mm(logits, head, out=d_x),
        "head": lambda: torch.mm(logits.t(), x, out_dtype=torch.float32, out=d_head),
    }
    contenders = {name: Contender(lambda call=call: call) for name, call in calls.items()}
    times = interleave(Stopwatch(session.device), contenders, 9)
    return {name: statistics.median(values) for name, values in times.items()}


class Stage(NamedTuple):
    """What to do, with each of which items, for how many seconds at most; how, and where."""

    run: Callable[..., Json]
    items: Callable[[], Iterable[tuple[Any, ...]]]
    seconds: float
    processes: int = 1
    gpu: bool = True


STAGES = {
    "checks": Stage(checked, to_check, 150, processes=4, gpu=False),
    "beyond_2_31": Stage(checked, huge, 60),
    "graphs": Stage(captured, partial(calls, training=True), 90),
    "synchronisation": Stage(unsynchronised, calls, 90),
    "races": Stage(raced, partial(calls, op="topk_kl", training=True), 60),
    "compiled": Stage(compiled, partial(shapes, places=PLACES[:1]), 150, processes=8),
    "shapes": Stage(shaped, shapes, 60),
    "products": Stage(products, lambda: [(v,) for v in (30522, 30528, 50257, 50304)], 20),
    "times": Stage(timed, to_time, 240, gpu=False),
}
