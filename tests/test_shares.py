"""What each loss counts for: logged, drawn, and said of a loss that does not count."""

import json
from dataclasses import dataclass

import pytest
import torch

from kdcache.losses import LOSSES, SoftKL
from kdcache.losses.combine import COMBINE
from kdcache.losses.kl import SoftKL as KL
from kdcache.training.shares import Shares
from kdcache.training.train import train
from tests.test_trainer import Watcher, assert_same_weights, log_of, narrow, stop

__all__ = ["narrow"]  # a fixture

STEPS = ("training.max_steps=16", "training.logging_steps=4", "training.learning_rate=1e-3")
TWICE = ("losses.again.kind=kl", "losses.again.weight=3", "losses.again.temperature=2")


@pytest.fixture(scope="module")
def twice(cache, narrow, tmp_path_factory):
    """A student of one loss of weight 1 and the same again of weight 3; hidden states beside."""
    overrides = [*STEPS, *TWICE, "losses.hard.weight=1e-6"]
    progress = Watcher()
    out = tmp_path_factory.mktemp("twice") / "run"
    options = {"recipe": "kd", "config": narrow, "overrides": overrides}
    return train(cache, out=out, progress=progress, **options), progress, options


def test_a_loss_three_times_another_has_three_times_its_shares(twice):
    log = log_of(twice[0].folder)
    for entry in log:
        assert entry["share_again"] == pytest.approx(3 * entry["share_kl"], rel=1e-5)
        assert sum(entry[f"share_{n}"] for n in ("kl", "again", "hard")) == pytest.approx(1)
    assert log[0]["gradient_again"] == pytest.approx(3 * log[0]["gradient_kl"], rel=1e-4)
    assert sum(log[0][f"gradient_{n}"] for n in ("kl", "again", "hard")) == pytest.approx(1)
    assert not any("gradient_kl" in entry for entry in log[1:])  # one in 60 steps for each loss


def test_a_loss_that_does_not_count_is_named_once_with_what_to_do(twice):
    result, progress, _ = twice
    (line,) = progress.messages
    assert line.startswith("losses.hard gives 0.0% of the gradient in epoch 1, and 0.0% of the obj")
    assert "raise losses.hard.weight from 1e-06 to " in line
    assert line.endswith(" for a tenth or leave the loss out")
    told = json.loads((result.folder / "metrics.json").read_text("utf-8"))
    assert set(told["shares"]) == {"kl", "again", "hard"}


def test_measuring_does_not_change_what_is_learnt(twice, cache, tmp_path, monkeypatch):
    result, _, options = twice
    monkeypatch.setattr(Shares, "due", lambda *_: False)
    assert_same_weights(result.folder, train(cache, out=tmp_path / "run", **options).folder)


@dataclass(frozen=True, kw_only=True)
class Running(SoftKL):
    """The divergence of a step beside the mean of those before, which it keeps."""

    kind = "running"

    def state(self, student, teacher):
        return {"mean": torch.zeros((), dtype=torch.float64), "steps": torch.tensor(0)}

    def value(self, pairs, step):
        now = KL.value(self, pairs, step)
        steps = step.state["steps"] + 1
        step.state["mean"] = step.state["mean"] + (now.detach() - step.state["mean"]) / steps
        step.state["steps"] = steps
        return now * (1 + step.state["mean"].float())


def test_what_a_loss_keeps_is_in_the_checkpoint_and_goes_on_exactly(
    cache, narrow, tmp_path, monkeypatch
):
    monkeypatch.setitem(LOSSES, "running", Running)
    recipe = tmp_path / "running.toml"
    recipe.write_text("[losses.running]\n[losses.hard]\n", "utf-8")
    overrides = [*STEPS, "training.save_strategy=steps", "training.save_steps=5"]
    options = {"recipe": recipe, "config": narrow, "overrides": overrides}
    whole = train(cache, out=tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="stopped"):
        train(cache, out=tmp_path / "run", progress=Watcher({7: stop}), **options)
    resumed = train(cache, out=tmp_path / "run", resume=True, **options)
    assert_same_weights(whole.folder, resumed.folder)
    log = [log_of(run.folder)[-1]["loss_running"] for run in (whole, resumed)]
    assert log[0] == log[1]


def test_a_way_to_combine_layers_is_a_line_in_the_table(cache, narrow, tmp_path, monkeypatch):
    monkeypatch.setitem(COMBINE, "largest", lambda costs, state: costs.max())
    found = {}
    for way in ("largest", "sum", "mean"):
        overrides = ["losses.hidden.weight=1", "losses.kl.weight=0", f"losses.hidden.layers={way}"]
        options = {"overrides": [*overrides, "training.max_steps=1", "training.logging_steps=1"]}
        out = train(cache, recipe="kd", out=tmp_path / way, config=narrow, **options).folder
        found[way] = log_of(out)[0]["loss_hidden"]
    assert found["mean"] < found["largest"] < found["sum"]
