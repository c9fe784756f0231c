"""The benchmark of steps: every way to a loss gives the same loss, and tiny shapes run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcache.bench.kernels_inputs import Size, draw_linear
from tests.scripts import script_of


@pytest.fixture(scope="module")
def steps() -> Any:
    return script_of("steps")


def test_all_ways_to_a_loss_give_the_same_loss_and_gradients(steps: Any) -> None:
    size = Size(rows=7, vocab=211, k=9, hidden=24)
    x = draw_linear(size, torch.float32, steps.CPU, False, temperature=1.0)
    hidden, head = (x[name].requires_grad_() for name in ("hidden", "head"))
    found: dict[str, list[tuple[torch.Tensor, ...]]] = {"cross-entropy": [], "top": []}
    for name, loss in steps.losses(x):
        value = loss(hidden, head)
        kind = "top" if name.startswith("top") else "cross-entropy"
        found[kind].append((value.detach(), *torch.autograd.grad(value, (hidden, head))))
    assert [len(ways) for ways in found.values()] >= [2, 4]
    for first, *others in found.values():
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["135M causal", pytest.param("BERT-small classifier", marks=pytest.mark.slow)]
)
def test_a_shape_runs_at_a_tiny_size(
    steps: Any, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = steps.SHAPES[name]
    small = {"vocab_size": 8192, "hidden_size": 36, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    monkeypatch.setattr(steps, "TEACHER", {"hidden_size": 12, "intermediate_size": 8, **heads})
    monkeypatch.setattr(steps, "STEPS", 2)
    monkeypatch.setattr(steps, "K", 8)
    shape = steps.Shape(
        task=whole.task, config={**whole.config, **small, **heads}, documents=2, length=16
    )
    cost = steps.cache_cost(shape, tmp_path, 1)
    hard, soft = (cost["step_seconds"][name] for name in ("labels", "cache"))
    assert cost["cache_over_labels"] == pytest.approx(soft / hard)
    if shape.task == "causal-lm":
        found = steps.head_steps(shape, 1)
        assert found["over_plain"][steps.PLAIN] == 1
        assert (found["rows"], found["vocabulary"]) == (32, 8192)
