"""Plain calls pass torch's dispatcher by; whoever looks for the ops still meets them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdcache.bench.kernels_case import Case
from kdcache.bench.kernels_cases import CASES
from kdcache.bench.kernels_inputs import Size, Tensors
from kdcache_kernels.topk_kl.spec import Spec, Teacher

SIZE = Size(rows=5, vocab=97, k=7, hidden=16)
FIRST = {case.op: case for case in reversed(CASES) if case.leaves}  # of every op with gradients
# A mean of few elements is torch's own op; what is normalised is ours.
FIRST["hidden_mse"] = next(case for case in CASES if case.variant == "l2")
every_op = pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)


def inputs(case: Case) -> Tensors:
    return case.draw(SIZE, torch.float32, torch.device("cpu"), False)


def loss_and_gradients(case: Case, x: Tensors) -> tuple[torch.Tensor, ...]:
    return case.run(case.ours, case.fresh(case.ours, x))


class Seen(TorchDispatchMode):
    """Notes the names of what passes through the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Labelled(torch.Tensor):
    """A subclass that adds nothing."""


@every_op
def test_a_dispatch_mode_sees_the_op_and_the_same_bits(case: Case) -> None:
    x = inputs(case)
    plain = loss_and_gradients(case, x)
    with Seen() as seen:
        dispatched = loss_and_gradients(case, x)
    assert f"kdcache::{case.op}" in seen.names
    assert all(torch.equal(a, b) for a, b in zip(plain, dispatched, strict=True))


@every_op
def test_fake_tensors_get_fake_losses(case: Case) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = {k: mode.from_tensor(v) for k, v in inputs(case).items()}
        found = loss_and_gradients(case, x)
    shapes = [(), *(x[leaf].shape for leaf in case.leaves)]
    assert [t.shape for t in found] == shapes
    assert loss_and_gradients(case, x)[0].shape == ()  # outside of the mode they stay what they are


@every_op
def test_a_subclass_of_tensor_meets_the_op(case: Case) -> None:
    x = inputs(case)
    leaf = case.leaves[0]
    want, got = (loss_and_gradients(case, y) for y in (x, {**x, leaf: Labelled(x[leaf])}))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@every_op
def test_the_profiler_names_the_op(case: Case) -> None:
    x = inputs(case)
    loss_and_gradients(case, x)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, acc_events=True) as profile:  # 2.11 warns without
        loss_and_gradients(case, x)
    names = {event.key for event in profile.key_averages()}
    assert {case.op, f"{case.op}Backward"} <= names


def test_a_schema_holds_the_fields_of_what_belongs_together() -> None:
    names = [x.name for x in torch.ops.kdcache.topk_kl.default._schema.arguments]
    parts = "logits", *Teacher._fields, "weight", "labels", *Spec._fields, "check", "need_grad"
    assert names == [*parts]
