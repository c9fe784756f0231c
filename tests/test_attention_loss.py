"""Attention scores of a student against a teacher's: what is compared, and what exists at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.losses import AttentionScores, Pair
from kdcache.losses.attention_error import probability_error, score_loss
from kdcache.losses.teachers import Teaching
from kdcache.signals import LayerRows, ModelSizes
from kdcache_kernels.relation_kl import arguments, reference
from tests.conformance.test_losses import documents
from tests.objectives import evaluate

SIZES: dict[str, Any] = {"outputs": 3, "hidden": 32, "heads": 4, "key_heads": 4, "head_width": 8}
STUDENT, TEACHER = ModelSizes(layers=2, **SIZES), ModelSizes(layers=4, **SIZES)


def drawn(lengths: list[int], dtype: torch.dtype = torch.float64) -> tuple[Pair, Pair]:
    """Queries and keys of documents of those lengths, four heads of 3 and of 5 values."""
    rng = torch.Generator().manual_seed(4)
    rows = sum(lengths)

    def pair() -> Pair:
        ours = torch.randn(rows, 12, generator=rng, dtype=torch.float64).to(dtype)
        theirs = torch.randn(rows, 20, generator=rng, dtype=torch.float64).to(dtype)
        return Pair(ours.requires_grad_(), LayerRows(codes=theirs))

    return pair(), pair()


def by_hand(
    queries: Pair, keys: Pair, lengths: list[int], *, together: bool, theirs: int = 4
) -> torch.Tensor:
    """Document by document, head by head, in plain torch."""
    total, start = torch.zeros((), dtype=torch.float64), 0
    for n in lengths:
        own = slice(start, start + n)
        ours, others = (
            (
                q[own].unflatten(1, (heads, -1)).transpose(0, 1)
                @ k[own].unflatten(1, (heads, -1)).permute(1, 2, 0)
                / math.sqrt(q.shape[1] // heads)
            )
            for q, k, heads in (
                (queries.student, keys.student, 4),
                (queries.teacher.codes, keys.teacher.codes, theirs),
            )
        )
        squares = (
            (ours.sum(0) - others.sum(0)).square() if together else (ours - others).square().mean(0)
        )
        total, start = total + squares.sum(), start + n
    return total / sum(n * n for n in lengths)


def assert_same(found: torch.Tensor, wanted: torch.Tensor, queries: Pair, keys: Pair) -> None:
    """Hold a value, and its gradients on the student's queries and keys, against another's."""
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    leaves = [queries.student, keys.student]
    exact, made = (torch.autograd.grad(loss, leaves) for loss in (wanted, found))
    for one, other in zip(exact, made, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("together", [False, True], ids=["each head", "all heads"])
@pytest.mark.parametrize("room", [8, 2000, 2**20])
def test_pieces_of_any_size_give_the_loss_and_gradients_of_plain_torch(
    monkeypatch: pytest.MonkeyPatch, room: int, together: bool
) -> None:
    monkeypatch.setitem(arguments.CHUNK, "cpu", room)
    lengths = [5, 5, 1, 7, 2, 2, 2]
    queries, keys = drawn(lengths)
    wanted = by_hand(queries, keys, lengths, together=together)
    found = score_loss(queries, keys, torch.tensor(lengths), 4, together=together)
    assert_same(2.0 * found, 2.0 * wanted, queries, keys)


@pytest.mark.parametrize("room", [8, 2000, 2**20])
def test_errors_of_probabilities_are_those_of_softmax_over_each_document(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setitem(arguments.CHUNK, "cpu", room)
    lengths = [5, 5, 1, 7, 2]
    queries, keys = drawn(lengths)
    weight = torch.tensor([0.5, 2.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    wanted, start = torch.zeros((), dtype=torch.float64), 0
    for n, w in zip(lengths, weight, strict=True):
        sides = [
            torch.einsum(
                "ihd,jhd->hij", *(x[start : start + n].unflatten(1, (4, -1)) for x in both)
            )
            for both in (
                (queries.student, keys.student),
                (queries.teacher.codes, keys.teacher.codes),
            )
        ]
        ours, theirs = ((s / d**0.5).softmax(-1) for s, d in zip(sides, (3, 5), strict=True))
        wanted, start = wanted + w * (ours - theirs).square().mean(0).sum(), start + n
    found = probability_error(queries, keys, torch.tensor(lengths), 4, weight)
    assert_same(found, wanted, queries, keys)


def test_the_sums_of_any_numbers_of_heads_are_compared() -> None:
    lengths = [5, 1, 7]
    queries, keys = drawn(lengths)
    wanted = by_hand(queries, keys, lengths, together=True, theirs=10)
    found = score_loss(queries, keys, torch.tensor(lengths), 4, together=True, their_heads=10)
    assert_same(found, wanted, queries, keys)


def test_a_student_and_a_teacher_of_any_numbers_of_heads_are_compared_by_their_sums() -> None:
    plain = documents("text-classification")
    halved = {}
    for name in ("query", "key"):
        ours, theirs = plain.others[name]
        split = theirs.reshape(*theirs.shape[:-1], 2, -1).swapaxes(3, 4)
        shape = (*theirs.shape[:2], 2 * theirs.shape[2], theirs.shape[3], -1)
        halved[name] = ours, split.reshape(shape)
    given = replace(plain, others={**plain.others, **halved})
    total = 0.0
    for doc, n in enumerate(given.lengths):
        ours, theirs = (
            np.einsum("hid,hjd->ij", q[doc, :, :n].astype(np.float64), k[doc, :, :n])
            / math.sqrt(q.shape[-1])
            for q, k in zip(*([sides[0][1], sides[1][3]] for sides in halved.values()), strict=True)
        )
        total += np.square(ours - theirs).sum()
    loss = {"attention": AttentionScores(heads="sum", layer_map="2:4")}
    found = evaluate(loss, given).total
    assert found == pytest.approx(total / np.square(given.lengths).sum(), rel=1e-12)
    taught = replace(given, further={"second": plain})
    both = {"attention": Teaching(teachers="all")}
    mean = (found + evaluate(loss, plain).total) / 2
    assert evaluate(loss, taught, teaching=both).total == pytest.approx(mean, rel=1e-12)


def test_no_more_scores_exist_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    multiply = reference._products

    def counting(*args: Any) -> torch.Tensor:
        found = multiply(*args)
        made.append(found.numel())
        return found

    monkeypatch.setattr(reference, "_products", counting)
    monkeypatch.setitem(arguments.CHUNK, "cpu", 8 * 300)
    lengths = [9] * 6
    queries, keys = drawn(lengths)
    score_loss(queries, keys, torch.tensor(lengths), 4).backward()
    assert sum(made) == 6 * 4 * 81
    assert max(made) <= 300


def test_half_precision_is_added_up_in_float32_and_its_gradients_are_its_own() -> None:
    lengths = [6, 3]
    queries, keys = drawn(lengths, torch.bfloat16)
    found = score_loss(queries, keys, torch.tensor(lengths), 4)
    wanted = by_hand(
        *(
            Pair(p.student.double(), LayerRows(codes=p.teacher.codes.double()))
            for p in (queries, keys)
        ),
        lengths,
        together=False,
    )
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    found.backward()
    assert queries.student.grad is not None
    assert queries.student.grad.dtype == torch.bfloat16


def test_a_map_of_layers_leaves_the_embedding_outputs_out() -> None:
    pairs = [
        (match.student.name, match.student.layer, match.teacher.layer)
        for match in AttentionScores().matches(STUDENT, TEACHER)
    ]
    assert pairs == [("query", 1, 2), ("key", 1, 2), ("query", 2, 4), ("key", 2, 4)]


def test_layers_are_added_up_or_averaged() -> None:
    given = documents("text-classification")
    first, second, both, mean = (
        evaluate({"attention": AttentionScores(**options)}, given).total
        for options in (
            {"layer_map": "1:2"},
            {"layer_map": "2:4"},
            {},
            {"layers": "mean"},
        )
    )
    assert both == pytest.approx(first + second, rel=1e-12)
    assert mean == pytest.approx(both / 2, rel=1e-12)


def test_probabilities_are_means_over_tokens_so_long_documents_count_for_more() -> None:
    given = documents("text-classification")
    loss = {"attention": AttentionScores(compare="probabilities", layer_map="2:4")}
    each = np.array([evaluate(loss, given.some([doc])).total for doc in range(4)])
    assert evaluate(loss, given).total == pytest.approx(
        float((each * given.lengths).sum() / given.lengths.sum()), rel=1e-12
    )
    assert each[2] == 0  # a token alone attends to itself


@pytest.mark.parametrize(
    ("options", "student", "message"),
    [
        ({}, {"heads": 2, "key_heads": 2}, "the student's queries 2, .* the teacher's keys 4"),
        ({}, {"key_heads": 1}, "not as many: .* the student's keys 1"),
        ({"heads": "sum"}, {"key_heads": 1}, "the student has 4 heads of queries and 1 of keys"),
        ({"layer_map": "0:0,1:2"}, {}, "from 1; got 0:0: 0 is the embedding output"),
        ({"layer_map": "1:0"}, {}, "from 1; got 1:0"),
        ({"layer_map": "1:5"}, {}, "needs teacher layer 5"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    options: dict[str, Any], student: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        AttentionScores(**options).matches(replace(STUDENT, **student), TEACHER)
    assert len(str(caught.value).splitlines()) == 1


def test_probabilities_of_heads_added_up_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads=sum of attention adds scores up"):
        AttentionScores(compare="probabilities", heads="sum")
