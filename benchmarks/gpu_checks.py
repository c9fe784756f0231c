"""What has to be right on a GPU: values and gradients, CUDA graphs, no waiting, the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from gpu_run import Json, Session

from kdcache.bench.kernels_case import Case
from kdcache.bench.kernels_cases import CASES
from kdcache.bench.kernels_check import Check, reason, relative_error
from kdcache.bench.kernels_grid import DTYPES

VOCABS = (30522, 128256, 151936, 50257, 32000, 1271)
CHECKED_ROWS = 72
CHUNKED_ROWS = 3000  # several chunks of a fused head
HUGE = ((16745, 128256), (14135, 151936))  # rows x vocabulary just beyond 2**31
WARM_ROWS = 2048
"""Rows that graphs are captured with. Triton compiles numbers that 16 divides apart from others:
with these, and 16 documents, it makes what the stage `times` runs."""
RACE_REPEATS = 300
WARM_UP = 3


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


def warmed(
    session: Session, case: Case, vocab: int, rows: int = WARM_ROWS
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call of our op that has run WARM_UP times, so that it is compiled."""
    x = case.draw(session.size(rows, vocab), torch.bfloat16, session.device, False)
    fresh = case.fresh(case.ours, x)
    for _ in range(WARM_UP):
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
    repeats = session.repeats(RACE_REPEATS)
    for turn in range(repeats):
        if not all(torch.equal(a, b) for a, b in zip(first, call(), strict=True)):
            return {"wrong": f"other bits in repeat {turn}"}
    return {"repeats": repeats, "equal": True}
