"""What is timed on a GPU: every op, how rows of topk_kl are cut, the products of a head."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from gpu_checks import VOCABS, case_of
from gpu_run import TOLD, Json, Session

from kdcache.bench.kernels import KEY, measure, report
from kdcache.bench.kernels_cases import CASES, RIVALS
from kdcache.bench.kernels_check import relative_error
from kdcache.bench.kernels_grid import Grid
from kdcache.bench.kernels_inputs import Size
from kdcache.bench.report import save_report
from kdcache.bench.timing import Contender, Stopwatch, interleave
from kdcache_kernels.topk_kl.spec import Spec, Teacher

ROWS = 8192
REPORT = "kernels.json"
"""What `kdcache bench kernels --read` shows."""
PLACES = ("in place", "out of place")
SHAPED = (30522, 50257, 128256, 262144)
SHAPES = (
    (2048, 4, 128), (2048, 8, 80), (4096, 4, 128), (4096, 4, 168), (4096, 4, 255), (4096, 8, 80),
    (4096, 8, 128), (4096, 16, 64), (8192, 8, 255), (8192, 16, 64), (8192, 16, 128), (8192, 32, 64),
    (16384, 16, 128), (16384, 32, 64),
)  # fmt: skip
"""Elements of a tile of topk_kl, its warps, registers of a thread."""
HEADLINES = (
    ("topk_kl", "T=1"), ("linear_topk_kl", "T=1"), ("hidden_mse", "row scale"), ("topk_encode", "")
)  # fmt: skip
"""Cases worth the seconds that torch.compile takes."""


def to_time() -> Iterator[tuple[str, str, int, int, str]]:
    """Headlines first, theirs of wide hidden states too, then the rest; last torch.compile's."""
    wide = [(case, 4096) for case in CASES if "head" in case.leaves]
    order = [*((case, 768) for case in CASES), *wide]
    order.sort(key=lambda item: (item[0].op, item[0].variant) not in HEADLINES)
    for case, hidden in order:
        for vocab in VOCABS[:2] if "vocab" in case.sizes else VOCABS[:1]:
            yield case.op, case.variant, vocab, hidden, "eager"
    for op, variant in HEADLINES:
        yield op, variant, VOCABS[0], 768, "compiled"


@cache
def timed_so_far(session: Session) -> tuple[Stopwatch, dict[Any, Json], dict[Any, Json]]:
    """One stopwatch, and the rows of the report with what an earlier run timed, for the stage."""
    path = session.out / REPORT
    earlier = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    return Stopwatch(session.device), {_key(row): row for row in earlier}, {}


def _key(row: Json) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


def timed(session: Session, op: str, variant: str, vocab: int, hidden: int, rivals: str) -> Json:
    """A case against its limit and its rivals, into REPORT; again with one more rival."""
    if rivals == "compiled" and not session.on_gpu:
        return {TOLD: "torch.compile takes minutes of a CPU"}
    watch, rows, refused = timed_so_far(session)
    case, size = case_of(op, variant), session.size(ROWS, vocab, hidden)
    left_out = () if rivals == "compiled" else ("torch.compile",)
    # A CPU multiplies bf16 so slowly that a walk through the script would end at the first head.
    dtype = "bf16" if session.on_gpu else "fp32"
    grid = Grid(
        rows=(size.rows,),
        dtypes=(dtype,),
        repeats=session.repeats(21),
        rivals=tuple(name for name in RIVALS if name not in left_out),
    )
    row = measure(case, size, dtype, grid, watch)
    torch.cuda.empty_cache()
    (refused if "wrong" in row else rows)[_key(row)] = row
    found = report(grid, session.device, list(rows.values()), list(refused.values()))
    save_report(session.out / REPORT, found)
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
    session: Session, place: str, vocab: int, *shape: int, repeats: int = 11, rows: int = ROWS
) -> Json:
    """Seconds of topk_kl with rows run in one way, the gradient that of plain torch."""
    from kdcache_kernels.topk_kl import _triton, reference

    size = session.size(rows, vocab)
    x = drawn(session, size)
    how = _triton.plan(size.vocab, _triton.slack(x["logits"], None), _triton.Shape(*shape))
    teacher = Teacher(x["ids"], x["logprobs"], x["tail_logmass"])
    weight = torch.full((size.rows,), 1 / size.rows, device=session.device)
    spec = Spec(1.0, "bucket", "forward", 1.0, 0.0, -100)
    apart = torch.empty_like(x["logits"])

    def call(logits: torch.Tensor) -> torch.Tensor:
        out = logits if place == "in place" else apart
        _triton.launch(logits, teacher, weight, None, spec, out, how)
        return out

    few = slice(0, 8)
    some = Teacher(*(t[few].double() if t.is_floating_point() else t[few] for t in teacher))
    logits = x["logits"][few].double()
    want = torch.empty_like(logits)
    reference.topk_kl(logits, some, weight[few].double(), None, spec, want, False)
    off = relative_error(call(x["logits"].clone())[few], want)
    if not off < 1e-2:
        return {"wrong": f"off by {off}"}

    def prepare() -> Callable[[], torch.Tensor]:
        logits = x["logits"].clone() if place == "in place" else x["logits"]
        return lambda: call(logits)

    if repeats == 0:
        return {"error": off}
    times = interleave(
        Stopwatch(session.device), {"": Contender(prepare)}, session.repeats(repeats)
    )[""]
    return {"seconds": statistics.median(times), "error": off}


def compiled(session: Session, *item: Any) -> Json:
    """The same for a few rows, so that it is compiled."""
    return shaped(session, *item, repeats=0, rows=64)


def heads() -> list[tuple[int]]:
    """Vocabularies, and the next ones that eight divides."""
    return [(vocab,) for vocab in (30522, 30528, 50257, 50304)]


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
