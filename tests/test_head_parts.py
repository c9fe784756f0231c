"""What the fused heads multiply, as torch counts it in a call, and what they move, by hand."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdcache.bench.head_parts import HeadShape, Part, head_flops, head_parts, least_bytes
from kdcache.bench.kernels_cases import CASES
from kdcache.bench.kernels_inputs import Size
from kdcache_kernels import linear_kl, linear_topk_kl

ROWS, CLASSES, WIDTH, OTHER = 7, 40, 6, 5
F64: Any = {"dtype": torch.float64}  # which no kernel has to be compiled for
ALL = ("hidden", "weight", "bias")
STORED = HeadShape(rows=ROWS, classes=CLASSES, width=WIDTH, item=8, chunk=3, k=2)
BOTH = replace(STORED, k=0, teacher_width=OTHER)


def call(shape: HeadShape, leaves: tuple[str, ...]) -> None:
    """An op on drawn inputs, `leaves` of which want gradients, three rows at a time."""
    x = {
        "hidden": torch.randn(ROWS, WIDTH, **F64),
        "weight": torch.randn(CLASSES, WIDTH, **F64),
        "bias": torch.randn(CLASSES, **F64),
    }
    hidden, weight, bias = (x[name].requires_grad_(name in leaves) for name in x)
    chunk_bytes = 3 * 8 * 64
    if shape.teacher_width:
        teacher = torch.randn(ROWS, OTHER, **F64), torch.randn(CLASSES, OTHER, **F64)
        linear_kl(hidden, weight, *teacher, bias=bias, chunk_bytes=chunk_bytes)
        return
    ids = torch.tensor([0, 3]).expand(ROWS, 2)
    logprobs, tail = torch.full((ROWS, 2), -2.0, **F64), torch.full((ROWS,), -0.5, **F64)
    linear_topk_kl(hidden, weight, bias, ids, logprobs, tail_logmass=tail, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("shape", [STORED, BOTH], ids=["linear_topk_kl", "linear_kl"])
@pytest.mark.parametrize("leaves", [ALL, ("hidden",), ("weight",), ("bias",), ()], ids=str)
def test_operations_of_a_call_are_those_that_torch_counts(
    shape: HeadShape, leaves: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A counter sees an op of kdcache's and nothing within it: inside, it counts the products.
    module = sys.modules["kdcache_kernels._linear"]
    original, counter = module.run, FlopCounterMode(display=False)

    def counted(*args: Any) -> Any:
        with counter:
            return original(*args)

    monkeypatch.setattr(module, "run", counted)
    call(shape, leaves)
    made = replace(shape, **{name: name in leaves for name in ALL})
    assert counter.get_total_flops() == head_flops(made) > 0
    parts = head_parts(made)
    assert [name for name in ("dX", "dW", "db") if name in parts] == [
        part for part, name in zip(("dX", "dW", "db"), ALL, strict=True) if name in leaves
    ]


def test_bytes_of_the_parts_are_counted_by_hand() -> None:
    """Seven rows, three at a time: the head is read thrice, its gradient is written first and then
    read and written twice.
    """
    logits, states, matrix = 8 * 7 * 40, 8 * 7 * 6, 8 * 40 * 6
    product = 2 * 7 * 40 * 6
    of_both = {
        "logits": Part(bytes=states + 3 * matrix + logits, flops=product),
        "teacher's logits": Part(
            bytes=8 * 7 * 5 + 3 * 8 * 40 * 5 + logits // 2, flops=2 * 7 * 40 * 5
        ),
        "row kernel": Part(bytes=2 * logits + logits // 2),
        "dX": Part(bytes=logits + 3 * matrix + states, flops=product),
        "dW": Part(bytes=logits + states + 5 * matrix // 2, flops=product),
        "db": Part(bytes=logits + 5 * 4 * 40),
    }
    assert head_parts(BOTH) == of_both
    of_both.pop("teacher's logits")
    assert head_parts(STORED) == {**of_both, "row kernel": Part(bytes=2 * logits + 8 * 7 * 2)}
    frozen = head_parts(replace(STORED, hidden=False, weight=False, bias=False))
    assert frozen["row kernel"].bytes == logits + 8 * 7 * 2  # nothing is written
    assert least_bytes(STORED) == 2 * (states + matrix) + 8 * 7 * 2
    assert least_bytes(BOTH) == 2 * (states + matrix) + 8 * 5 * (7 + 40)


def test_parts_of_a_case_have_all_of_its_operations() -> None:
    """At the width of a row of bfloat16 on a GPU, in chunks; and on a CPU, in float32."""
    size = Size(rows=9000, vocab=30522, k=64, hidden=768)
    with_parts = set()
    for case in CASES:
        for device in ("cpu", "cuda"):
            parts = case.parts(size, torch.bfloat16, torch.device(device))
            if parts:
                with_parts.add(case.op)
                assert sum(part["flops"] for part in parts.values()) == case.flops(size)
    assert with_parts == {"linear_topk_kl", "linear_kl"}
