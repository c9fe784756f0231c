"""Losses that compare the documents of a batch with each other: what each document counts for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.losses import LOSSES, Loss
from kdcache.losses.batch_relations import batch_relation_loss
from kdcache.losses.cc import congruence_loss
from kdcache.losses.contrast import contrast_loss
from kdcache.losses.pkt import neighbour_loss
from kdcache.losses.sp import similarity_loss
from tests.conformance.test_losses import documents
from tests.objectives import bind, counts, evaluate

Compare = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
CLASSES = {6: torch.tensor([0, 1, 0, -100, 2, 1]), 4: torch.tensor([0, 0, -100, 1])}
"""Of six documents, and of the four of them that count."""
FUNCTIONS: dict[str, Compare] = {
    "sp": similarity_loss,
    "pkt": neighbour_loss,
    "cc": congruence_loss,
    "batch_relations": lambda ours, theirs, w: batch_relation_loss(ours, theirs, 2, w),
    "contrast": lambda ours, theirs, w: contrast_loss(
        ours, theirs, CLASSES[len(ours)], temperature=0.5, weight=w
    ),
}
"""Of vectors [B, H] and [B, width], and weights [B]."""
KINDS = ("rkd", *FUNCTIONS)

every_function = pytest.mark.parametrize("compare", FUNCTIONS.values(), ids=FUNCTIONS)


def vectors(*, student: int = 8, teacher: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Of six documents, the student's with a gradient."""
    rng = np.random.default_rng(3)
    ours, theirs = (torch.from_numpy(rng.standard_normal((6, w))) for w in (student, teacher))
    return ours.requires_grad_(), theirs


@every_function
def test_documents_of_no_weight_are_as_if_they_were_not_there(compare: Compare) -> None:
    ours, theirs = vectors()
    weight = torch.tensor([0.5, 0.0, 0.5, 0.5, 0.0, 0.5], dtype=torch.float64)
    found, there = compare(ours, theirs, weight), weight > 0
    wanted = 2 * compare(ours[there], theirs[there], None)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    (moved,) = torch.autograd.grad(found, ours)
    (same,) = torch.autograd.grad(wanted, ours)
    torch.testing.assert_close(moved, same, rtol=1e-12, atol=1e-15)
    assert not moved[~there].any()


@every_function
def test_a_lone_document_one_that_is_all_zero_and_none_are_defined(compare: Compare) -> None:
    ours, theirs = vectors()
    alone = torch.zeros(6, dtype=torch.float64)
    alone[2] = 1
    for weight in (alone, torch.zeros_like(alone)):
        found = compare(ours, theirs, weight)
        assert float(found.detach()) == pytest.approx(0, abs=1e-5)  # contrast adds 1e-7 in its log
        assert torch.autograd.grad(found, ours)[0].abs().max() < 1e-5
    for side in (0, 1):
        empty = [x.detach().clone() for x in (ours, theirs)]
        empty[side][1] = 0
        leaf = empty[0].requires_grad_()
        found = compare(leaf, empty[1], None)
        assert bool(found.isfinite())
        assert bool(torch.autograd.grad(found, leaf)[0].isfinite().all())


@every_function
def test_autocast_rounds_nothing(compare: Compare) -> None:
    ours, theirs = (x.detach().float() for x in vectors())
    plain = compare(ours, theirs, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compare(ours, theirs, None), plain)


def test_a_label_that_no_other_document_has_is_drawn_to_its_teacher_alone() -> None:
    ours, theirs = vectors()
    for labels in (torch.arange(6), torch.full((6,), -100)):
        found = contrast_loss(ours, theirs, labels, temperature=0.5)
        lone = contrast_loss(ours, theirs, torch.tensor([7, 8, 9, 1, 2, 3]), temperature=0.5)
        assert bool(found.isfinite())
        assert float(found.detach()) == pytest.approx(float(lone.detach()), rel=1e-12)


@pytest.mark.parametrize("task", ["causal-lm", "values", "several"])
def test_contrast_is_refused_where_a_document_has_no_class(task: str) -> None:
    """It has a label for each token, a number, or several labels."""
    given = documents("causal-lm" if task == "causal-lm" else "text-classification")
    floats = np.ones(4, np.float32) if task == "values" else np.zeros((4, 6), np.int64)
    given = given if task == "causal-lm" else replace(given, labels=floats)
    with pytest.raises(ConfigError, match=r"losses\.contrast compares documents by the class of"):
        bind({"contrast": LOSSES["contrast"]()}, given)


@pytest.mark.parametrize("kind", KINDS)
def test_each_batch_of_a_step_counts_for_its_documents(kind: str) -> None:
    given, loss = documents("text-classification"), {kind: LOSSES[kind]()}
    totals = list(counts(loss, given).values())
    for docs in ([0, 1, 3], [2, 3]):
        part = evaluate(loss, given.some(docs), totals=totals)
        whole = evaluate(loss, given.some(docs))
        assert part.total == pytest.approx(len(docs) / 4 * whole.total, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_two_side_by_side_add_up(kind: str) -> None:
    given = documents("text-classification")
    losses: dict[str, Loss] = {"kl": LOSSES["kl"](), "one": LOSSES[kind]()}
    both = evaluate({**losses, "other": LOSSES["rkd"](weight=2.0, vectors="pooled")}, given)
    assert bind(losses, given).reads  # of one tap, both
    wanted = [evaluate({n: x}, given).total for n, x in losses.items()]
    other = evaluate({"other": LOSSES["rkd"](weight=2.0, vectors="pooled")}, given).total
    assert both.total == pytest.approx(sum(wanted) + other, rel=1e-12)
