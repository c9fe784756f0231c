"""Losses against numbers that other implementations of the papers gave: files of `oracles/`.

Each is a case: inputs, the loss, and `grad_NAME` its gradient at the student's input NAME, in
float64. Most were made by running code that authors of the methods published.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.losses import ALP, RKD, hard_loss, mutual_rows, soft_and_hard
from kdcache.losses.alp import attended_loss
from kdcache.losses.rkd import relation_losses
from kdcache.signals import ModelSizes, SoftLabels
from tests.conformance.test_losses import documents
from tests.objectives import Array, evaluate

FOLDER = Path(__file__).with_name("oracles")


def oracle(name: str) -> dict[str, Array]:
    """The arrays of a case."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def leaf(values: Array) -> torch.Tensor:
    """What a student computed, float64, with a gradient."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def check_gradients(found: torch.Tensor, wanted: dict[str, Array], **leaves: torch.Tensor) -> None:
    """Hold a loss and its gradients at some leaves against a case."""
    assert float(found.detach()) == pytest.approx(float(wanted["loss"]), rel=1e-9)
    gradients: Any = torch.autograd.grad(found, list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        scale = np.abs(wanted[f"grad_{name}"]).max()
        np.testing.assert_allclose(
            gradient.numpy(), wanted[f"grad_{name}"], rtol=1e-9, atol=1e-12 * scale, err_msg=name
        )


@pytest.mark.parametrize("case", ["nine.rkd_a", "nine.rkd_b"])
def test_rkd_is_the_published_codes_distance_and_angle(case: str) -> None:
    given = oracle(case)
    ours, theirs = leaf(given["s_feature"]), torch.from_numpy(given["t_feature"])
    distance, angle = relation_losses(ours, theirs)
    for part, wanted in ((distance, "out_distance"), (angle, "out_angle")):
        assert float(part.detach()) == pytest.approx(float(given[wanted]), rel=1e-9)
    total = float(given["w_d"]) * distance + float(given["w_a"]) * angle
    check_gradients(total, given, s_feature=ours)


def test_documents_of_no_weight_have_no_relation_and_a_lone_one_has_none() -> None:
    given = oracle("nine.rkd_b")
    theirs = torch.from_numpy(given["t_feature"])
    ours = leaf(given["s_feature"])
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
    given = oracle("nine.rkd_b")
    ours, theirs = (torch.from_numpy(given[name]).float() for name in ("s_feature", "t_feature"))
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


@pytest.mark.parametrize("case", ["nine.dml_a", "mutual.a", "mutual.b"])
def test_mutual_learning_is_the_published_sum_over_students(case: str) -> None:
    """Labels and peers, and in two cases a teacher: students in turn, their peers constants."""
    given = oracle(case)
    students, labels = leaf(given["s_logits"]), torch.from_numpy(given["labels"])
    temperature = float(given.get("temperature", 1.0))
    found = []
    for place, ours in enumerate(students):
        peers = [*students[:place], *students[place + 1 :]]
        loss = hard_loss(ours, labels) + mutual_rows(ours, peers, temperature).mean()
        if "t_logits" in given:
            teacher = torch.log_softmax(torch.from_numpy(given["t_logits"]), -1)
            ids = torch.arange(teacher.shape[1]).expand(len(teacher), -1)
            soft = SoftLabels(ids=ids, logprobs=teacher)
            loss = loss + soft_and_hard(ours, soft, temperature=temperature)[0]
        found.append(loss)
    if "out_per_student" in given:
        parts = torch.stack(found).detach().numpy()
        np.testing.assert_allclose(parts, given["out_per_student"], rtol=1e-6)
    assert float(torch.stack(found).sum().detach()) == pytest.approx(float(given["loss"]), rel=1e-6)
    (gradient,) = torch.autograd.grad(torch.stack(found).sum(), [students])
    wanted = given["grad_s_logits"]
    tolerance = {"rtol": 1e-6, "atol": 1e-6 * np.abs(wanted).max()}
    np.testing.assert_allclose(gradient.numpy(), wanted, **tolerance)


@pytest.mark.parametrize("case", ["alp_kd.a", "alp_kd.b", "alp_kd.scaled"])
def test_alp_is_the_published_attention_over_the_teachers_layers(case: str) -> None:
    given = oracle(case)
    ours = leaf(given["s_hidden"])
    theirs = torch.from_numpy(given["t_hidden"])[1:, :, 0].transpose(0, 1)
    scaled, means = bool(given["scale_dot"]), bool(given["mean_layers"])
    found = torch.stack([attended_loss(layer[:, 0], theirs, scaled=scaled) for layer in ours[1:]])
    np.testing.assert_allclose(found.detach().numpy(), given["out_per_layer"], rtol=1e-9)
    check_gradients(found.mean() if means else found.sum(), given, s_hidden=ours)


@pytest.mark.parametrize("layers", ["sum", "mean"])
def test_alp_attends_to_the_layers_it_is_told(layers: str) -> None:
    given = documents("text-classification")
    assert given.taught is not None
    theirs = torch.from_numpy(given.taught[[2, 4], :, 0].astype(np.float64)).transpose(0, 1)
    states = torch.from_numpy(given.hidden.astype(np.float64))
    found = evaluate({"alp": ALP(teacher_layers=(2, 4), layers=layers)}, given).total
    each = torch.stack([attended_loss(layer[:, 0], theirs) for layer in states[1:]])
    wanted = each.mean() if layers == "mean" else each.sum()
    assert found == pytest.approx(float(wanted), rel=1e-6)


def test_alp_learns_a_map_for_each_layer_of_a_student_that_is_narrower() -> None:
    student, teacher = (ModelSizes(outputs=3, hidden=wide, layers=2) for wide in (4, 6))
    pairs = ALP().matches(student, teacher)
    assert [pair.project for pair in pairs] == ["1", "1", "2", "2"]
    assert {pair.project for pair in ALP(projection="none").matches(student, teacher)} == {None}
    with pytest.raises(ConfigError, match=r"teacher layer 3; the teacher has layers 0 .* to 2"):
        ALP(teacher_layers=(1, 3)).matches(student, teacher)
