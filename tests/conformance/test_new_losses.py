"""A loss, a layer map and weights of documents of a user's own: a module with one class and two
functions, and a table entry for each, take a student from a recipe to curves and a card, beside a
signal and a codec of a user's own. CONTRIBUTING promises no more.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdcache.losses import LOSSES
from kdcache.losses.example_weights import EXAMPLE_WEIGHTS, Way
from kdcache.losses.layer_maps import LAYER_MAPS
from kdcache_cli.main import app
from tests.conformance import test_layer_maps, test_losses
from tests.conformance.conftest import Caches
from tests.conformance.test_new_signals import SIGNALS_OF_IT, TASK, module

__all__ = ["module"]  # a fixture

MODULE = '''
"""Cosine distance of hidden states, as in DistilBERT (arXiv:1910.01108), between both ends."""

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import cosine_similarity

from kdcache.losses.base import Match, weighted
from kdcache.losses.layer_maps import layer_pairs
from kdcache.signals import TAP_KINDS, Tap


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Sum over layers of 1 - cos."""

    kind: ClassVar[str] = "direction"
    over: ClassVar[str] = "rows"
    weight: float = 1.0
    layer_map: str = "ends"
    tap: str = "hidden"
    signal: str = ""

    def matches(self, student, teacher):
        pairs = [(None, None)]
        if TAP_KINDS[self.tap].first is not None:
            pairs = layer_pairs(self.layer_map, student.layers, teacher.layers)
        return [
            Match(Tap(self.tap, ours), Tap(self.tap, theirs), signal=self.signal)
            for ours, theirs in pairs
        ]

    def value(self, pairs, step):
        apart = [
            1 - cosine_similarity(pair.student, pair.teacher.dense().to(pair.student.dtype))
            for pair in pairs
        ]
        return weighted(sum(apart), step.weight)


def ends(student, teacher):
    """The lowest layers and the topmost."""
    return (0, 0), *((layer, layer) for layer in range(1, student)), (student, teacher)


def less(asked, *, even: float = 0.5):
    """Every second document of the plan counts less."""
    return 1 - (1 - even) * (asked.batch["docs"] % 2 == 0).double()
'''

RECIPE = """
description = "Both ends of a student point where its teacher's do."
paper = "arXiv:1910.01108"

[losses.ends]
kind = "direction"
layer_map = "ends"

[losses.mean]
kind = "direction"
tap = "average"
signal = "mine"
weight = 2

[losses.kl]
weight = 0.5

[data.example_weights]
name = "less"
even = 0.25

[training]
learning_rate = 1e-3
per_device_train_batch_size = 6
max_steps = 12
logging_steps = 1
"""


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, its class and its functions in their tables."""
    (tmp_path / "cosine_of_ours.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("cosine_of_ours")
    monkeypatch.setitem(LOSSES, "direction", module.Direction)
    monkeypatch.setitem(LAYER_MAPS, "ends", module.ends)
    monkeypatch.setitem(EXAMPLE_WEIGHTS, "less", Way(module.less))
    return module


@pytest.mark.usefixtures("added", "module")
def test_a_recipe_that_names_them_trains_a_student_to_curves_and_card(
    caches: Caches, tmp_path: Path
) -> None:
    states = "hidden:layers=0-1-2-3-4,positions=all"
    cache = caches.build(TASK, [*SIGNALS_OF_IT, states])
    (tmp_path / "ends.toml").write_text(RECIPE, "utf-8")
    out = tmp_path / "student"
    command = ["train", str(cache.path), "--recipe", str(tmp_path / "ends.toml")]
    config = str(caches.teachers[TASK])
    ended = CliRunner().invoke(app, [*command, "--config", config, "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    log = [e for e in json.loads((out / "training_log.json").read_text("utf-8")) if "loss" in e]
    assert len(log) == 12
    for name in ("ends", "mean", "kl"):
        found = [entry[f"loss_{name}"] for entry in log]
        assert sum(found[-4:]) < sum(found[:4]), name
    for entry in log:
        terms = entry["loss_ends"] + 2 * entry["loss_mean"] + 0.5 * entry["loss_kl"]
        assert entry["loss"] == pytest.approx(terms, rel=1e-4)
    assert (out / "curves.png").stat().st_size > 10_000
    card = (out / "README.md").read_text("utf-8")
    assert "ends × 1, mean × 2, kl × 0.5" in card
    assert "| documents weighed by | less (even=0.25) |" in card
    weighed = json.loads((out / "metrics.json").read_text("utf-8"))["example_weights"]
    assert 0.25 < weighed["mean"] < 1
    scores = ["evaluate", str(out), str(caches.corpora[TASK]), "--limit", "12", "--json"]
    ours, dense = (
        json.loads(CliRunner().invoke(app, [*scores, "--cache", str(found.path)]).stdout)
        for found in (cache, caches.build(TASK, ["logits:dense"]))
    )
    rows, exact = ours["teacher_rows"], dense["teacher_rows"]
    assert rows["documents"] == exact["documents"] == cache.plan.documents
    assert rows["agreement"] == pytest.approx(exact["agreement"], abs=0.1)
    assert rows["divergence"] == pytest.approx(exact["divergence"], abs=0.02)


@pytest.mark.usefixtures("added")
def test_the_suites_take_them_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in test_losses.TASKS:
        where = ("direction", task)
        test_losses.test_its_gradient_is_its_slope_in_every_direction(*where)
        test_losses.test_it_reads_no_pad_and_moves_none(*where)
        test_losses.test_micro_batches_add_up_to_the_whole_batch(*where, [[0, 3], [1, 2]])
        test_losses.test_a_document_of_weight_two_counts_twice_and_one_of_weight_zero_not_at_all(
            *where
        )
    test_losses.test_documents_without_a_row_or_a_weight_cost_nothing_and_move_nothing("direction")
    test_losses.test_it_is_refused_in_a_line_where_there_is_nothing_to_learn_from("direction")
    monkeypatch.setattr(test_losses, "CASES", [*test_losses.CASES, ("direction", "masked-lm")])
    with pytest.raises(AssertionError, match=r"state \{'direction'\} in FORMULAS"):
        test_losses.test_every_loss_has_a_task_and_its_formula_here()
    test_layer_maps.test_pairs_lie_within_both_depths_and_rise("ends")
    test_layer_maps.test_every_layer_of_the_student_but_its_ends_learns("ends")
