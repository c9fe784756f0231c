"""How long topk_kl takes a GPU at least: to issue its instructions, and to move its bytes.

Warp instructions a row are counted, not estimated: the machine code is walked along the way of a
usual row, from branch to branch, each loop as often as the plan says. What is counted is issue
slots, so an instruction whose predicate is false counts as well, and no branch is taken that only
some lanes take: the count is an upper bound by a few instructions a row. A row whose weight is 0,
or whose first tile says little of its size, goes other ways and is not counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kdcache_kernels.topk_kl import _triton_kernels, _triton_row, _triton_support
from kdcache_kernels.topk_kl._triton import Plan

ROWS, K = 8192, 64
PROCESSORS, SCHEDULERS, HERTZ = 132, 4, 1.98e9  # of both cards
BYTES_A_SECOND = {"H100": 3.0e12, "H200": 4.3e12}  # what a copy reaches
SHARE = 0.8
LONG, LONG_SECONDS = 128256, 0.95e-3
REGISTERS, WARPS, BLOCKS, SHARED = 65536, 64, 32, 228 * 1024  # of a multiprocessor of sm_90
RESERVED = 1024  # bytes of shared memory that a block has besides its own

WAYS: dict[str, bool | Callable[[Plan], int] | None] = {
    "for n in range(tl.program_id(0), N, tl.num_programs(0)):": None,
    "if w == 0:": True,
    "if (tl.minimum(mass, mass1) < LEAST) | (tl.maximum(mass, mass1) > MOST):": True,
    "tl.atomic_or(flags_ptr + (o >> 5), 1 << (o & 31), mask=inside, "
    'sem="relaxed", scope="cta")': False,
    "for i in range(1, inner):": lambda plan: plan.inner - 1,
    "for n in range(1, inner):": lambda plan: plan.inner - 1,
}
"""By source line of a branch: is it taken, or how often does its loop run? None: a row ends."""

FILE = re.compile(r'//## File "(.+)", line (\d+)')
LABEL = re.compile(r"^(\.L_x_\d+):")
CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+)?\s*([A-Z][\w.]*)(.*);")


class Instruction(NamedTuple):
    """A machine instruction: where it jumps to, if it does, and the source line it comes from."""

    name: str
    conditional: bool
    target: str
    line: str


class Floor(NamedTuple):
    """What one vocabulary takes at least, for `ROWS` rows of bf16 and K = 64, on one card."""

    vocab: int
    card: str
    registers: int
    shared_bytes: int
    num_warps: int
    blocks: int
    warp_instructions: int
    issue_seconds: float
    memory_seconds: float
    share: float
    missed: str


def blocks(registers: int, num_warps: int, shared: int) -> int:
    """How many blocks a multiprocessor of sm_90 holds."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * num_warps)
    return min(by_registers, WARPS // num_warps, SHARED // (shared + RESERVED), BLOCKS)


def floors(vocab: int, plan: Plan, registers: int, shared: int, listing: str) -> Iterator[Floor]:
    """The floors on every card; `listing` is what `nvdisasm -c -gi` makes of the machine code."""
    warps = plan.shape.num_warps
    issued = warps * sum(executed(listing, plan).values())
    seconds = ROWS * issued / (PROCESSORS * SCHEDULERS * HERTZ)
    for card, speed in BYTES_A_SECOND.items():
        memory = moved(vocab) / speed
        yield Floor(
            vocab,
            card,
            registers,
            shared,
            warps,
            blocks(registers, warps, shared),
            issued,
            seconds,
            memory,
            seconds / memory,
            missed(vocab, card, seconds, memory),
        )


def moved(vocab: int) -> int:
    """Bytes of one read of every input and one write of every output."""
    support = K * (8 + 4)
    scalars = 5 * 4  # the tail, the weight, and three results
    return ROWS * (2 * 2 * vocab + support + scalars)


def missed(vocab: int, card: str, seconds: float, memory: float) -> str:
    """By how much the goal is missed, nothing if it is met."""
    if card == "H100" or vocab < LONG:
        over = seconds / memory / SHARE
        return f"{over:.2f} times {SHARE} of the memory floor" if over > 1 else ""
    over = seconds / LONG_SECONDS
    return f"{over:.2f} times {1e3 * LONG_SECONDS} ms" if vocab == LONG and over > 1 else ""


def executed(listing: str, plan: Plan) -> Counter[str]:
    """Instructions that a warp issues for a usual row, by name.

    Raises:
        RuntimeError: the code branches where no branch is known, or reads the row more or less
            than twice.
    """
    code, labels = parsed(listing)
    here = next(
        labels[one.target]
        for one in code
        if one.target and not one.conditional and WAYS.get(one.line, False) is None
    )
    found: Counter[str] = Counter()
    turns: Counter[int] = Counter()
    while True:
        one = code[here]
        found[one.name] += 1
        there = labels[one.target] if one.target else here
        if there == here:
            here += 1
        elif not one.conditional and WAYS.get(one.line, False) is None:
            break
        elif not one.conditional or goes(one, here, there < here, turns, plan):
            here = there
        else:
            here += 1
    check(found, plan)
    return found


def goes(one: Instruction, here: int, back: bool, turns: Counter[int], plan: Plan) -> bool:
    """Whether a conditional branch is taken."""
    way = WAYS.get(one.line)
    if way is None:
        raise RuntimeError(
            f"no branch is known here: {one.line!r}; see WAYS in {Path(__file__).name}"
        )
    if not callable(way):
        return way
    runs = way(plan)
    if not back:
        return runs == 0
    turns[here] += 1
    return turns[here] < runs


def check(found: Counter[str], plan: Plan) -> None:
    """A row is read twice, 16 bytes a lane: a loop that ran too often would show."""
    loads = sum(n for name, n in found.items() if name.startswith("LDG") and name.endswith(".128"))
    a_tile = plan.shape.block // (32 * plan.shape.num_warps * 8)
    expected = 2 * (plan.inner + plan.last) * a_tile
    if loads != expected:
        raise RuntimeError(f"{expected} wide loads a row were expected; walked past {loads}")


def parsed(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions in their order, and where each label points."""
    sources = {
        Path(str(module.__file__)).name: Path(str(module.__file__)).read_text("utf-8").split("\n")
        for module in (_triton_kernels, _triton_row, _triton_support)
    }
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    line = ""
    for text in listing.split("\n"):
        if found := FILE.search(text):
            source = sources.get(Path(found[1]).name)
            line = source[int(found[2]) - 1].strip() if source else ""
        elif found := LABEL.match(text):
            labels[found[1]] = len(code)
        elif found := CODE.search(text):
            if found[2].startswith(("BRX", "CALL", "JMP", "RET")):
                raise RuntimeError(f"{found[2]} of {line!r}: where it goes is not known")
            target = re.search(r"\.L_x_\d+", found[3]) if found[2].startswith("BRA") else None
            condition = found[1] is not None or (
                "P" in found[3].split("`")[0] and target is not None
            )
            code.append(Instruction(found[2], condition, target[0] if target else "", line))
    return code, labels
