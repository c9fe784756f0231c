"""A student of several teachers, from a merged cache: trained, resumed and refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kdcache
from kdcache.errors import ConfigError
from kdcache.losses.teachers import CHOOSERS, Policy
from kdcache.store import Cache, open_cache
from kdcache.training.train import train
from tests.conftest import bert_config, save_teacher
from tests.test_trainer import Watcher, assert_same_weights, log_of, narrow, stop

__all__ = ["narrow"]  # a fixture

RECIPE = """
[losses.kl]
temperature = 2.0
teachers = "all"
choose = "sampled-documents"

[losses.hard]
weight = 0.5

[losses.hidden]
layer_map = "1:1,2:2"
projection = "linear"
teachers = ["small", "classifier"]
choose = "sampled"

[losses.turns]
kind = "logit_mse"
teachers = "all"
choose = "in-turn"

[training]
max_steps = 6
per_device_train_batch_size = 8
learning_rate = 1e-3
logging_steps = 1
save_strategy = "steps"
save_steps = 3
"""


MODULE = """
def in_turn(asked):
    return {asked.teachers[asked.step % len(asked.teachers)]: 2.0}
"""


@pytest.fixture
def in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy of a user's own: a module with a function, and its line in the table."""
    (tmp_path / "turns_of_ours.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("turns_of_ours")
    monkeypatch.setitem(CHOOSERS, "in-turn", Policy(module.in_turn))


@pytest.fixture(scope="module")
def both(folder: Path, cache: Cache, classifier: Path, tokenizer: Path) -> Cache:
    """The cache of the classifier, with what a smaller one gives on the same plan."""
    torch.manual_seed(5)
    labels = transformers.AutoConfig.from_pretrained(classifier)
    config = bert_config(
        tokenizer,
        hidden_size=16,
        num_hidden_layers=2,
        id2label=labels.id2label,
        label2id=labels.label2id,
    )
    path = folder / "small"
    save_teacher(path, tokenizer, transformers.BertForSequenceClassification(config))
    other = kdcache.build(
        str(cache.path),
        teacher=path,
        task="text-classification",
        out=folder / "small.zarr",
        signals=["logits:dense", "hidden:layers=1-2,positions=cls,dtype=fp32"],
        batch_tokens=1024,
    )
    kdcache.merge([cache.path, other.path], folder / "both.zarr")
    return open_cache(folder / "both.zarr")


def first_loss(cache: Cache, out: Path, narrow: str, *overrides: str) -> float:
    options = ["training.max_steps=1", "training.logging_steps=1", *overrides]
    result = train(cache, recipe="kd", out=out, config=narrow, overrides=options)
    return float(log_of(result.folder)[0]["loss_kl"])


def test_a_loss_of_all_teachers_is_the_mean_of_theirs(
    both: Cache, narrow: str, tmp_path: Path
) -> None:
    each = [
        first_loss(open_cache(both.path, teacher=name), tmp_path / name, narrow)
        for name in ("classifier", "small")
    ]
    assert each[0] != pytest.approx(each[1], rel=0.01)
    found = first_loss(both, tmp_path / "both", narrow, "losses.kl.teachers=all")
    assert found == pytest.approx(sum(each) / 2, rel=1e-5)
    card = (tmp_path / "both" / "README.md").read_text("utf-8")
    assert "| teachers | kl: classifier, small (all) |" in card


@pytest.mark.slow
@pytest.mark.usefixtures("in_turn")
def test_a_resumed_run_draws_the_teachers_that_the_unbroken_one_drew(
    both: Cache, narrow: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE, "utf-8")

    def run(name: str, **options: Any) -> Path:
        recipe = tmp_path / "mine.toml"
        made = train(both, recipe=recipe, out=tmp_path / name, config=narrow, **options)
        return made.folder

    whole = run("whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run("broken", progress=Watcher({4: stop}))
    resumed = run("broken", resume=True)
    assert_same_weights(whole, resumed)
    assert log_of(whole)[-1]["grad_norm"] == log_of(resumed)[-1]["grad_norm"]
    assert "turns: classifier, small (in-turn)" in (resumed / "README.md").read_text("utf-8")
    assert (resumed / "curves.png").stat().st_size > 10_000


SELECTED = """
[losses.rl]
temperature = 2.0
teachers = ["classifier", "small"]
semantic = "cls"
baseline = 0.9
rate = 10.0

[losses.hard]
weight = 0.5

[training]
max_steps = 6
per_device_train_batch_size = 8
learning_rate = 1e-3
logging_steps = 1
save_strategy = "steps"
save_steps = 3
"""


def test_a_policy_that_was_stopped_goes_on_with_its_weights_draws_and_rewards(
    both: Cache, narrow: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "selected.toml"
    recipe.write_text(SELECTED, "utf-8")
    known: dict[str, Any] = {"recipe": recipe, "config": narrow}
    whole = train(both, out=tmp_path / "whole", **known).folder
    with pytest.raises(RuntimeError, match="stopped"):
        train(both, out=tmp_path / "broken", progress=Watcher({4: stop}), **known)
    resumed = train(both, out=tmp_path / "broken", resume=True, **known).folder
    assert_same_weights(whole, resumed)
    for name in ("loss_rl", "grad_norm"):
        assert log_of(whole)[-1][name] == log_of(resumed)[-1][name]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("losses.rl.choose=sum", r"losses\.rl learns itself which of its teachers count"),
        ("training.gradient_accumulation_steps=2", r"losses\.rl is rewarded by the step that"),
        ("losses.rl.semantic=pooled", r"losses\.rl needs pooled; the cache holds"),
        ("losses.rl.reward=label", "unknown reward of rl 'label'"),
    ],
)
def test_a_policy_that_cannot_learn_is_refused_before_anything_loads(
    both: Cache, narrow: str, tmp_path: Path, override: str, message: str
) -> None:
    recipe = tmp_path / "selected.toml"
    recipe.write_text(SELECTED, "utf-8")
    with pytest.raises(ConfigError, match=message):
        train(both, recipe=recipe, out=tmp_path / "x", config=narrow, overrides=[override])
    assert not (tmp_path / "x").exists()
