"""Plain calls pass torch's dispatcher by; whoever looks for the ops still meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdcache.bench.kernels_inputs import Size, Tensors, draw_hidden, draw_linear
from kdcache_kernels import hidden_mse, linear_kl, linear_topk_kl, topk_kl

Loss = Callable[[Tensors], torch.Tensor]

SIZE = Size(rows=5, vocab=97, k=7, hidden=16)


def _soft(x: Tensors) -> tuple[torch.Tensor, ...]:
    return x["ids"], x["logprobs"]


LOSSES: dict[str, tuple[Loss, tuple[str, ...]]] = {
    "topk_kl": (
        lambda x: topk_kl(x["logits"], *_soft(x), tail_logmass=x["tail_logmass"]),
        ("logits",),
    ),
    "linear_topk_kl": (
        lambda x: linear_topk_kl(
            x["hidden"], x["head"], x["bias"], *_soft(x), tail_logmass=x["tail_logmass"]
        ),
        ("hidden", "head", "bias"),
    ),
    "linear_kl": (
        lambda x: linear_kl(x["hidden"], x["head"], x["teacher_hidden"], x["teacher_head"]),
        ("hidden", "head"),
    ),
    "hidden_mse": (lambda x: hidden_mse(x["student"], x["codes"], x["scale"]), ("student",)),
}
every_op = pytest.mark.parametrize("name", LOSSES)


def inputs(name: str) -> Tensors:
    cpu = torch.device("cpu")
    x = draw_linear(SIZE, torch.float32, cpu, False, temperature=1.0)
    x |= draw_hidden(SIZE, torch.float32, cpu)
    x["logits"] = x["hidden"] @ x["head"].t()
    return {k: v.requires_grad_() if k in LOSSES[name][1] else v for k, v in x.items()}


def loss_and_gradients(name: str, x: Tensors) -> tuple[torch.Tensor, ...]:
    formula, leaves = LOSSES[name]
    loss = formula(x)
    return (loss, *torch.autograd.grad(loss, [x[leaf] for leaf in leaves]))


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
def test_a_dispatch_mode_sees_the_op_and_the_same_bits(name: str) -> None:
    x = inputs(name)
    plain = loss_and_gradients(name, x)
    with Seen() as seen:
        dispatched = loss_and_gradients(name, x)
    assert f"kdcache::{name}" in seen.names
    assert all(torch.equal(a, b) for a, b in zip(plain, dispatched, strict=True))


@every_op
def test_fake_tensors_get_fake_losses(name: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = {k: mode.from_tensor(v) for k, v in inputs(name).items()}
        found = loss_and_gradients(name, x)
    shapes = [(), *(x[leaf].shape for leaf in LOSSES[name][1])]
    assert [t.shape for t in found] == shapes
    assert loss_and_gradients(name, x)[0].shape == ()  # outside of the mode they stay what they are


@every_op
def test_a_subclass_of_tensor_meets_the_op(name: str) -> None:
    x = inputs(name)
    leaf = LOSSES[name][1][0]
    marked = {**x, leaf: x[leaf].detach().as_subclass(Labelled).requires_grad_()}  # type: ignore[arg-type]  # torch's stub wants an instance
    want, got = loss_and_gradients(name, x), loss_and_gradients(name, marked)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@every_op
def test_the_profiler_names_the_op(name: str) -> None:
    x = inputs(name)
    loss_and_gradients(name, x)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, acc_events=True) as profile:  # 2.11 warns without
        loss_and_gradients(name, x)
    names = {event.key for event in profile.key_averages()}
    assert {name, f"{name}Backward"} <= names
