"""Losses that compare the tokens of a document with each other: ragged, zero, rounded, sampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.losses import FSP, LOSSES, Distances, Loss
from kdcache.losses.at import AT, attention_rows
from kdcache.losses.by_document import ByDocument
from kdcache.signals import ModelSizes
from tests.conformance.test_losses import documents
from tests.objectives import evaluate, value

KINDS = ("at", "nst", "fsp", "distances")
every_kind = pytest.mark.parametrize("kind", KINDS)


def losses(kind: str) -> dict[str, Loss]:
    return {kind: LOSSES[kind]()}


@every_kind
def test_states_that_are_all_zero_are_defined(kind: str) -> None:
    given = documents("causal-lm")
    assert given.taught is not None
    for side in ("hidden", "taught"):
        empty = getattr(given, side).copy()
        empty[:, 1:3] = 0  # two documents whole
        empty[1:, 0, 2] = 0  # and a token
        found = evaluate(losses(kind), replace(given, **{side: empty}))
        assert np.isfinite(found.total)
        assert np.isfinite(found.gradients["hidden"]).all()


@every_kind
def test_what_is_the_teachers_costs_nothing(kind: str) -> None:
    given = documents("causal-lm")
    assert given.taught is not None
    found = evaluate(losses(kind), replace(given, hidden=given.taught[::2]))
    assert found.total == pytest.approx(0, abs=1e-12)
    assert np.abs(found.gradients["hidden"]).max() < 1e-7


@every_kind
def test_half_precision_and_autocast_round_no_more_than_what_they_get(kind: str) -> None:
    given = documents("causal-lm")
    half = {n: torch.from_numpy(x).bfloat16() for n, x in given.student.items()}
    wanted = value(losses(kind), given, {n: x.float() for n, x in half.items()})[0]
    assert float(value(losses(kind), given, half)[0]) == pytest.approx(float(wanted), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value(losses(kind), given, {n: x.float() for n, x in half.items()})[0]
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


@every_kind
def test_two_side_by_side_add_up(kind: str) -> None:
    given, other = documents("causal-lm"), LOSSES[kind](weight=3.0, layer_map="1:2,2:4")
    both = evaluate({**losses(kind), "other": other}, given).total
    alone = [evaluate(x, given).total for x in (losses(kind), {"other": other})]
    assert both == pytest.approx(sum(alone), rel=1e-12)


def test_at_counts_padded_positions_where_it_is_told_to() -> None:
    given = documents("causal-lm")
    out, count = (evaluate({"at": AT(pads=pads)}, given).total for pads in ("out", "count"))
    assert count == pytest.approx(out * given.lengths.sum() / given.mask.size, rel=1e-12)


def test_at_of_one_token_has_nothing_to_tell() -> None:
    lone = ByDocument(torch.tensor([0, 1, 1]), 2, 2)
    rng = np.random.default_rng(0)
    ours, theirs = (torch.from_numpy(rng.standard_normal((3, width))) for width in (4, 6))
    rows = attention_rows(ours, theirs, lone)
    assert rows[0] == pytest.approx(0, abs=1e-12)
    assert bool((rows[1:] > 0).all())


@pytest.mark.parametrize("of", ["hidden", "attention"])
def test_distances_of_some_documents_at_a_time_are_those_of_all(
    of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, loss = documents("causal-lm"), {"distances": Distances(of=of, layer_map="1:2,2:2")}
    at_once = evaluate(loss, given)
    monkeypatch.setattr("kdcache.losses.distances.CHUNK_BYTES", 1)
    found = evaluate(loss, given)
    assert found.total == pytest.approx(at_once.total, rel=1e-12)
    for name, gradient in found.gradients.items():
        np.testing.assert_allclose(gradient, at_once.gradients[name], rtol=1e-9, atol=1e-15)
    moved = ("query", "key") if of == "attention" else ("hidden",)
    assert all(found.gradients[name].any() for name in moved)


@pytest.mark.parametrize("layer_map", ["0:0", "0:2,1:4", "1:0"])
def test_distances_of_attention_have_none_of_embedding_outputs(layer_map: str) -> None:
    sizes = [ModelSizes(outputs=3, hidden=8, layers=n, heads=2, key_heads=2) for n in (2, 4)]
    with pytest.raises(ConfigError, match="of distances pairs layers that attend, from 1; got"):
        Distances(of="attention", layer_map=layer_map).matches(*sizes)
    uniform = Distances(of="attention").matches(*sizes)
    assert [match.student.layer for match in uniform] == [1, 1, 2, 2]


@pytest.mark.parametrize(("heads", "has"), [(2, "2"), (None, "no attention")])
def test_distances_of_attention_take_as_many_heads_on_both_sides(
    heads: int | None, has: str
) -> None:
    sizes = [ModelSizes(outputs=3, hidden=8, layers=2, heads=each) for each in (heads, 4)]
    with pytest.raises(
        ConfigError, match=f"the student has {has} and the teacher 4: set of=hidden"
    ):
        Distances(of="attention").matches(*sizes)


def test_fsp_needs_two_layers() -> None:
    sizes = [ModelSizes(outputs=3, hidden=8, layers=layers) for layers in (2, 4)]
    with pytest.raises(ConfigError, match=r"'1:2' has one pair: give it two, such as '0:0,2:4'"):
        FSP(layer_map="1:2").matches(*sizes)
