"""Stages of one layer after the other: each trains its layer, and slowly or not what lies below."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcache
from kdcache.errors import ConfigError
from kdcache.models.layer_rates import at_rates, one_layer_trained
from kdcache.store import Cache
from kdcache.training.recipe import load_recipe
from tests.taps import model_of
from tests.test_stages import At
from tests.test_trainer import assert_same_weights, log_of, narrow, weights

__all__ = ["narrow"]  # a fixture

RATE = 1e-3
RECIPE = f"""
description = "A layer at a time, then soft labels."

[training]
learning_rate = {RATE}
lr_scheduler_type = "constant"
weight_decay = 0.0
max_steps = 1
logging_steps = 1
save_strategy = "steps"
save_steps = 1

[[stages]]
name = "layer"
progressive = true
below = 0.1
[stages.losses.hidden]
layer_map = "uniform"

[[stages]]
name = "labels"
[stages.losses.kl]
"""


def write(path: Path, text: str = RECIPE) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def whole(cache: Cache, narrow: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("progressive")
    recipe = write(folder / "mine.toml")
    return kdcache.train(cache, recipe=recipe, out=folder / "run", config=narrow, seed=1)


def moves(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, float]:
    """How far a parameter has gone at most, by the part of the student that it is of."""
    parts = {"embeddings": "embeddings", "layer.0": "0", "layer.1": "1", "": "head"}
    found: dict[str, float] = {}
    for name, value in after.items():
        part = next(known for text, known in parts.items() if text in name)
        found[part] = max(found.get(part, 0.0), float((value - before[name]).abs().max()))
    return found


def test_there_is_a_stage_for_each_layer_of_the_student_with_its_pairs(whole: Any) -> None:
    stages = {stage.name: stage for stage in load_recipe(whole.folder / "recipe.toml").stages}
    assert list(stages) == ["layer-1", "layer-2", "labels"]
    maps = [stages[f"layer-{n}"].losses["hidden"].layer_map for n in (1, 2)]  # type: ignore[attr-defined]  # it has one
    assert maps == ["0:0,1:2", "2:4"]
    assert whole.metrics["steps"] == 3
    assert set(whole.metrics["stages"]) == {"layer-1", "layer-2", "labels"}


def test_a_layer_goes_at_the_whole_rate_what_lies_below_at_a_share_and_above_not_at_all(
    whole: Any, cache: Cache, narrow: str
) -> None:
    fresh = kdcache.make_student(cache, config=narrow, seed=1).state_dict()
    first, second = (weights(whole.folder / "stages" / f"layer-{n}") for n in (1, 2))
    near = {"abs": 0.02 * RATE}  # of a step of Adam, whose first is the rate whatever the gradient
    assert moves(fresh, first) == pytest.approx(
        {"embeddings": RATE, "0": RATE, "1": 0.0, "head": 0.0}, **near
    )
    assert moves(first, second) == pytest.approx(
        {"embeddings": RATE / 10, "0": RATE / 10, "1": RATE, "head": 0.0}, **near
    )
    last = moves(second, weights(whole.folder))
    assert last["head"] == pytest.approx(RATE, **near)


def test_a_run_that_is_stopped_in_a_stage_of_a_layer_goes_on_exactly(
    whole: Any, cache: Cache, narrow: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"out": tmp_path / "run", "config": narrow, "seed": 1}
    options["recipe"] = write(tmp_path / "mine.toml")
    stopped = At("layer-2", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        kdcache.train(cache, progress=stopped, **options)
    resumed = kdcache.train(cache, resume=True, **options)
    assert_same_weights(resumed.folder, whole.folder)


@pytest.mark.parametrize("below", [0.0, 0.5])
@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Qwen3"])
def test_every_parameter_is_of_the_layer_below_it_or_above(family: str, below: float) -> None:
    model = model_of(family)
    names = {parameter: name for name, parameter in model.named_parameters()}
    with one_layer_trained(model, 2, below) as slowed:
        trained = {names[p] for p in names if p.requires_grad and p not in slowed}
        slow = {names[p] for p in slowed}
        frozen = {names[p] for p in names if not p.requires_grad}
    assert all(parameter.requires_grad for parameter in names)
    second = {name for name in names.values() if ".1." in name}
    low = {n for n in names.values() if ".0." in n or ("embed" in n and "LayerNorm" not in n)}
    assert trained == second
    assert low <= (slow if below else frozen)
    assert set(slowed.values()) <= {below}
    assert any("classifier" in name or "score" in name for name in frozen)


def test_groups_of_an_optimizer_are_cut_by_rate_the_whole_one_first() -> None:
    a, b, c = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    groups = [{"params": [a, b], "lr": 2.0, "weight_decay": 1.0}, {"params": [c], "lr": 2.0}]
    found = list(at_rates(groups, {a: 0.25, c: 0.25}))
    assert [group["params"] for group in found] == [[b], [a], [c]]
    assert [group["lr"] for group in found] == [2.0, 0.5, 0.5]
    assert "weight_decay" not in found[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("progressive = true", ""), "below is of a stage that trains one layer"),
        (("below = 0.1", "below = 2.0"), "below from 0 to 1"),
        (('"uniform"', '"skip"'), None),
        (('"uniform"', '"1:2,3:4"'), "the student has layers 0"),
        (
            ("progressive = true", "layer = 5"),
            "stage 'layer' trains layer 5, and the student has 2",
        ),
    ],
)
def test_what_makes_no_sense_of_layers_is_refused(
    change: tuple[str, str], message: str | None, cache: Cache, narrow: str, tmp_path: Path
) -> None:
    recipe = write(tmp_path / "mine.toml", RECIPE.replace(*change))
    options: dict[str, Any] = {"recipe": recipe, "out": tmp_path / "run", "config": narrow}
    if message is None:  # a map that leaves the last layer out has no stage for it
        done = kdcache.train(cache, progress=False, **options)
        assert set(done.metrics["stages"]) == {"layer-1", "labels"}
        return
    with pytest.raises(ConfigError, match=message):
        kdcache.train(cache, progress=False, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_mobilebert_moves_each_layer_towards_its_own_of_the_teacher(
    corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    cache = kdcache.build(
        corpus,
        teacher=classifier,
        task="text-classification",
        out=tmp_path / "cache.zarr",
        signals=["logits:dense", "attention:layers=2-4", "hidden:layers=2-4,positions=all"],
        max_length=24,
        limit=64,
        keep_teacher_weights=True,
        progress=False,
    )
    done = kdcache.train(
        cache,
        recipe="mobilebert",
        out=tmp_path / "run",
        init_from_teacher=[1, 3],
        progress=False,
        batch_size=64,
        overrides=[
            "training.max_steps=6",
            "stages.labels.training.learning_rate=3e-3",
            "stages.layer.training.learning_rate=3e-3",
            "training.logging_steps=1",
            "training.save_strategy=no",
        ],
    )
    log = log_of(done.folder)
    for stage, names in (
        ("layer-1", {"hidden", "attention", "moments"}),
        ("layer-2", {"hidden", "attention", "moments"}),
        ("labels", {"kl", "hard"}),
    ):
        found = [entry for entry in log if entry["stage"] == stage]
        assert {n.removeprefix("loss_") for n in found[0] if n.startswith("loss_")} == names
        assert found[-1]["loss"] < found[0]["loss"]
