"""Layers combined by attention: which layers, and the maps between widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.losses import ALP
from kdcache.losses.alp import attended_loss
from kdcache.signals import ModelSizes
from tests.conformance.test_losses import documents
from tests.objectives import evaluate


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
