"""Relations between documents: whose documents count, and which vectors they are of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdcache.losses import RKD
from tests.conformance.test_losses import documents
from tests.methods import Given
from tests.methods.rkd import relation_losses
from tests.objectives import evaluate


def test_documents_of_no_weight_have_no_relation_and_a_lone_one_has_none() -> None:
    given = Given("nine.rkd_b")
    ours, theirs = given["s_feature"], given["t_feature"]
    weight = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0, 0.0], dtype=torch.float64)
    found = torch.stack(relation_losses(ours, theirs, weight))
    there = weight > 0
    wanted = relation_losses(ours[there], theirs[there], weight[there])
    assert found.tolist() == pytest.approx(torch.stack(wanted).tolist(), rel=1e-12)
    (moved,) = torch.autograd.grad(found.sum(), ours)
    assert bool(moved[there].any(1).all())
    assert not moved[~there].any()
    for alone in (torch.ones(6), torch.zeros(6)):
        same = ours[:1].expand(6, -1)
        lone = torch.stack(relation_losses(same, theirs[:1].expand(6, -1), alone))
        assert lone.tolist() == [0, 0]
        assert not torch.autograd.grad(lone.sum(), ours)[0].any()


def test_autocast_does_not_round_the_relations() -> None:
    given = Given("nine.rkd_b", torch.float32)
    ours, theirs = given["s_feature"], given["t_feature"]
    plain = relation_losses(ours, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = relation_losses(ours, theirs)
    assert torch.equal(torch.stack(rounded), torch.stack(plain))


@pytest.mark.parametrize("vectors", ["cls", "mean", "pooled"])
def test_rkd_takes_the_vectors_it_is_told_of_the_last_layers(vectors: str) -> None:
    given = documents("text-classification")
    assert given.taught is not None
    given = replace(given, positions="mean" if vectors == "mean" else "cls")
    sides = {"pooled": [of_last[-1] for of_last in given.others["pooled"]]}
    for positions in ("cls", "mean"):
        states = given.hidden[-1], given.taught[-1]
        sides[positions] = [given.rows_at(of_last, positions) for of_last in states]
    ours, theirs = (torch.from_numpy(rows.astype(np.float64)) for rows in sides[vectors])
    distance, angle = relation_losses(ours, theirs)
    found = evaluate({"rkd": RKD(vectors=vectors)}, given).total
    assert found == pytest.approx(float(25 * distance + 50 * angle), rel=1e-6)
