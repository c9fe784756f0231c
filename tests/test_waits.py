"""Losses on a device without data: whoever waits for it to know a number raises.

A GPU would not: it would only be slower.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from kdcache.losses import soft_and_hard, transport
from kdcache.plans.batch import Batch
from kdcache.signals import SoftLabels, positions
from tests.conformance.test_losses import alone, documents, tasks_of
from tests.objectives import batch_of, value

NOWHERE = torch.device("meta")
BY_LENGTH = ("attention", "relations", "emd", "distances")
"""Losses that cut a batch by the lengths of its documents."""
BY_LENGTH_CASES = [(kind, task) for kind in BY_LENGTH for task in tasks_of(kind)]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a device knows no autocast; that tokens are read out of activations, and that the host
    solves a transport, is waited for elsewhere.
    """

    def of_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return hidden.flatten(0, 1)[: int(documents("causal-lm").lengths.sum())]

    monkeypatch.setattr(torch, "autocast", lambda *given, **options: nullcontext())
    monkeypatch.setattr(positions, "_of_tokens", of_tokens)
    monkeypatch.setattr(transport, "plan", lambda costs, *sides: torch.ones_like(costs))


def step(kind: str, task: str) -> torch.Tensor:
    given = documents(task)
    student = {
        name: torch.from_numpy(x).to(NOWHERE).requires_grad_() for name, x in given.student.items()
    }
    total, *_ = value(alone(kind), given, student)
    total.backward()
    return total


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("kind", "task"), BY_LENGTH_CASES)
def test_lengths_of_documents_are_not_waited_for(kind: str, task: str) -> None:
    assert step(kind, task).device == NOWHERE


@pytest.mark.usefixtures("nowhere")
def test_lengths_that_nobody_counted_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests here can fail."""

    def uncounted(batch: Batch, device: Any, non_blocking: bool = False) -> Batch:
        batch.lengths = None
        return moved(batch, device, non_blocking)

    moved = Batch.to
    monkeypatch.setattr(Batch, "to", uncounted)
    for kind in BY_LENGTH:
        with pytest.raises(RuntimeError, match="meta"):
            step(kind, tasks_of(kind)[0])


def test_a_batch_that_was_moved_knows_its_lengths_still() -> None:
    batch = batch_of(documents("causal-lm"))
    counted = batch.known_lengths()
    assert batch.to(NOWHERE).beside(more=torch.ones(1)).known_lengths().equal(counted)
    assert counted.equal(batch["attention_mask"].sum(1))
    batch.lengths = None
    assert batch.known_lengths().equal(counted)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_and_hard_losses_wait_for_nothing_that_is_told(temperature: float) -> None:
    logits = torch.empty(6, 50, device=NOWHERE, requires_grad=True)
    soft = SoftLabels(
        ids=torch.empty(6, 4, dtype=torch.int64, device=NOWHERE),
        logprobs=torch.empty(6, 4, device=NOWHERE),
        tail_logmass=torch.empty(6, device=NOWHERE),
        tail_stat=torch.empty(6, device=NOWHERE),
    )
    labels = torch.empty(6, dtype=torch.int64, device=NOWHERE)

    def loss(**told: Any) -> torch.Tensor:
        return soft_and_hard(
            logits, soft, temperature=temperature, labels=labels, hard_weight=0.5, **told
        )[0]

    loss(hard_factor=1.5).backward()
    with pytest.raises(RuntimeError, match="meta"):
        loss()  # counts the labelled rows
