"""How benchmarks/kernel_floors.py counts: machine code is walked from branch to branch."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from kdcache_kernels.topk_kl import _triton_kernels, _triton_row
from kdcache_kernels.topk_kl._triton import Plan, Shape
from tests.scripts import script_of

floors = script_of("kernel_floors")

PLAN = Plan(Shape(256, 1, 128), inner=5, last=1)  # a tile is a wide load


def at(module: Any, text: str) -> str:
    """What the disassembler writes before the instructions of a source line."""
    path = inspect.getsourcefile(module)
    lines = Path(str(path)).read_text("utf-8").split("\n")
    (line,) = [n for n, found in enumerate(lines, 1) if text in found]
    return f'\t//## File "{path}", line {line}'


def listing(extra: str = "") -> str:
    """A kernel in small: rows, those of no weight apart, and a loop over tiles in each pass."""
    row = at(_triton_kernels, "for n in range(tl.program_id(0)")
    load = "/*0000*/ @!P0 LDG.E.EL.128 R28, desc[UR34][R32.64] ;"

    def a_pass(loop: str, label: int) -> str:
        return f"""{at(_triton_row, loop)}
        {load}
        {load}
        /*0000*/ @P0 BRA `(.L_x_{label + 1}) ;
.L_x_{label}:
        {load}
        /*0000*/ FADD R1, R1, R2 ;
        /*0000*/ @P0 BRA `(.L_x_{label}) ;
.L_x_{label + 1}:"""

    return f"""{row}
        /*0000*/ @P0 EXIT ;
.L_x_0:
{at(_triton_kernels, "if w == 0:")}
        /*0000*/ @P0 BRA `(.L_x_1) ;
        /*0000*/ STG.E desc[UR30][R30.64], RZ ;
        /*0000*/ BRA `(.L_x_9) ;
.L_x_1:
{a_pass("for i in range(1, inner):", 2)}
{extra}
{a_pass("for n in range(1, inner):", 4)}
.L_x_9:
{row}
        /*0000*/ BRA `(.L_x_0) ;"""


def test_a_usual_row_is_counted_with_its_loops_and_without_the_ways_it_does_not_go() -> None:
    found = floors.executed(listing(), PLAN)
    assert found == {"LDG.E.EL.128": 12, "FADD": 8, "BRA": 1 + 2 * 5 + 1}


def test_a_loop_that_does_not_run_is_jumped_over() -> None:
    found = floors.executed(listing(), Plan(Shape(256, 1, 128), inner=1, last=1))
    assert found == {"LDG.E.EL.128": 4, "BRA": 4}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("/*0000*/ @P3 BRA `(.L_x_4) ;", "no branch is known here"),
        ("/*0000*/ CALL.REL.NOINC `(.L_x_4) ;", "where it goes is not known"),
        ("/*0000*/ LDG.E.EL.128 R0, desc[UR4][R2.64] ;", "12 wide loads .* walked past 13"),
    ],
    ids=["branch", "call", "reads"],
)
def test_code_that_cannot_be_followed_is_refused(extra: str, message: str) -> None:
    line = at(_triton_kernels, "first = load_packed(")
    with pytest.raises(RuntimeError, match=message):
        floors.executed(listing(f"{line}\n        {extra}"), PLAN)


def test_floors_are_those_of_the_cards() -> None:
    h100, h200 = floors.floors(128256, PLAN, 128, 1024, listing())
    assert (h100.card, h200.card) == ("H100", "H200")
    assert h100.warp_instructions == 32
    assert h100.issue_seconds == pytest.approx(8192 * 32 / (132 * 4 * 1.98e9))
    assert h100.memory_seconds == pytest.approx(8192 * 4 * 128256 / 3.0e12, rel=2e-3)
    assert h200.memory_seconds == pytest.approx(h100.memory_seconds * 3.0 / 4.3)


def test_what_limits_the_blocks_of_a_multiprocessor() -> None:
    assert floors.blocks(registers=128, num_warps=8, shared=1024) == 2
    assert floors.blocks(registers=40, num_warps=16, shared=1024) == 3
    assert floors.blocks(registers=32, num_warps=16, shared=1024) == 4
    assert floors.blocks(registers=32, num_warps=1, shared=0) == 32
    assert floors.blocks(registers=32, num_warps=4, shared=100 * 1024) == 2


@pytest.mark.parametrize(
    ("vocab", "card", "issue", "memory", "missed"),
    [
        (30522, "H200", 0.8, 1.0, ""),
        (30522, "H200", 0.88, 1.0, "1.10 times 0.8 of the memory floor"),
        (262144, "H100", 1.6, 1.0, "2.00 times 0.8 of the memory floor"),
        (262144, "H200", 1.6, 1.0, ""),
        (128256, "H200", 0.95e-3, 0.98e-3, ""),
        (128256, "H200", 1.9e-3, 0.98e-3, "2.00 times 0.95 ms"),
    ],
)
def test_goals(vocab: int, card: str, issue: float, memory: float, missed: str) -> None:
    assert floors.missed(vocab, card, issue, memory) == missed
