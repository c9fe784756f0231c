"""Numbers of losses that change while a student trains."""

import math
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import ConfigError
from kdcache.losses import SCHEDULES, Moment, Schedule, SoftKL
from kdcache.training.recipe import load_recipe
from kdcache.training.train import train
from tests.test_trainer import assert_same_weights, log_of, narrow

__all__ = ["narrow"]  # a fixture

ORACLES = Path(__file__).parent / "oracles"
RAMP = "losses.kl.temperature={start=4, stop=1}"
STEPS = ("training.max_steps=6", "training.logging_steps=1", "training.learning_rate=1e-3")


@pytest.mark.parametrize("shape", SCHEDULES)
def test_a_shape_goes_from_0_to_1_and_never_leaves_them(shape):
    way = [SCHEDULES[shape](x) for x in np.linspace(0, 1, 101)]
    assert way[0] == pytest.approx(0)
    assert way[-1] == pytest.approx(1)
    assert way == sorted(way)


@pytest.mark.parametrize(
    ("options", "steps", "epochs"),
    [
        ({}, [4, 3, 2, 1], [4, 4, 4, 4]),
        ({"per": "epoch"}, [4, 4, 4, 4], [4, 2.5, 1]),
        ({"shape": "step"}, [4, 4, 1, 1], [4, 4, 4, 4]),
        ({"levels": 2}, [4, 4, 1, 1], [4, 4, 4, 4]),
        ({"levels": 100}, [4, 3, 2, 1], [4, 4, 4, 4]),
        ({"shape": "cosine"}, [4, 3.25, 1.75, 1], [4, 4, 4, 4]),
    ],
)
def test_the_first_step_or_epoch_has_start_and_the_last_has_stop(options, steps, epochs):
    schedule = Schedule(start=4, stop=1, **options)
    in_steps = [schedule.at(Moment(i, 4, 0, 1)) for i in range(4)]
    in_epochs = [schedule.at(Moment(0, 4, i, len(epochs))) for i in range(len(epochs))]
    assert in_steps == pytest.approx(steps)
    assert in_epochs == pytest.approx(epochs)
    assert schedule.at(Moment(0, 1, 0, 1)) == 4


def test_a_recipe_with_schedules_reads_back_equal(tmp_path):
    recipe = load_recipe("kd", [RAMP, "losses.kl.temperature.shape=cosine"])
    assert recipe.losses["kl"] == SoftKL(temperature=4)
    assert recipe.schedules == {"kl": {"temperature": Schedule(start=4, stop=1, shape="cosine")}}
    (tmp_path / "again.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml") == load_recipe(recipe) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kl.temperature={start=4, stop=0}", "kl.temperature goes from 4 to 0: .* more than 0"),
        ("kl.temperature={start=0, stop=4}", "temperature goes from 0 to 4: .* more than 0"),
        ("hard.weight={start=1, stop=-1}", "hard.weight goes from 1 to -1: .* 0 or more"),
        ("kl.temperature={start=4}", "kl.temperature needs stop"),
        ("kl.temperature={start=4, stop=1, shape='cosin'}", "did you mean 'cosine'"),
        ("kl.temperature={start=4, stop=1, per='steps'}", "did you mean 'step'"),
        ("kl.temperature={start=4, stop=1, stp=1}", "did you mean 'stop'"),
        ("kl.temperature={start=4, stop=1, levels=1}", "levels of a schedule is 2 or more"),
        ("kl.temperature={start=4, stop=inf}", "between finite numbers"),
        ("kl.tail={start=1, stop=2}", "tail must be a text"),
        ("kl.t_squared={start=1, stop=0}", "must be true or false"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_before_anything_loads(override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("kd", [f"losses.{override}"])


def test_a_loss_whose_weight_only_grows_is_on_and_learns(cache, narrow, tmp_path):
    overrides = [*STEPS, "losses.hard.weight={start=0, stop=1}", RAMP]
    out = train(cache, recipe="kd", out=tmp_path / "run", config=narrow, overrides=overrides).folder
    log = log_of(out)
    assert [entry["hard.weight"] for entry in log] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert [entry["kl.temperature"] for entry in log] == pytest.approx([4, 3.4, 2.8, 2.2, 1.6, 1])
    for entry in log:
        terms = entry["loss_kl"] + entry["hard.weight"] * entry["loss_hard"]
        assert entry["loss"] == pytest.approx(terms, rel=1e-4)
    assert "kl × 1, hard × 0 to 1" in (out / "README.md").read_text("utf-8")


def test_a_schedule_that_stands_still_trains_the_student_of_the_number(cache, narrow, tmp_path):
    for name, value in (("still", "{start=3.0, stop=3.0}"), ("plain", "3.0")):
        overrides = [*STEPS, f"losses.kl.temperature={value}"]
        train(cache, recipe="kd", out=tmp_path / name, config=narrow, overrides=overrides)
    assert_same_weights(tmp_path / "still", tmp_path / "plain")


def test_a_shape_of_a_user_is_a_line_in_the_table(cache, narrow, tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "there and back", lambda x: math.sin(math.pi * x) * 2)
    wave = "losses.kl.temperature={start=1, stop=3, shape='there and back'}"
    out = train(
        cache, recipe="kd", out=tmp_path / "run", config=narrow, overrides=[*STEPS, wave]
    ).folder
    temperatures = [entry["kl.temperature"] for entry in log_of(out)]
    assert (temperatures[0], temperatures[-1]) == pytest.approx((1, 1))
    assert max(temperatures) == pytest.approx(1 + 4 * math.sin(math.pi * 0.4))
    with pytest.raises(ConfigError, match="goes from 3 to 1: temperature must be more than 0"):
        load_recipe("kd", [wave.replace("start=1, stop=3", "start=3, stop=1")])


def test_a_cache_that_serves_both_ends_has_to_serve_what_lies_between(masked_cache, tmp_path):
    """Top-k keeps the tail at temperatures 1 and 2."""
    options = {"recipe": "mlm-kd", "out": tmp_path / "run", "init_from_teacher": [2, 4]}
    step = "losses.kl.temperature={start=2, stop=1, levels=2}"
    smooth = step.replace(", levels=2", "")
    with pytest.raises(ConfigError, match=r"temperature 1\.96\d+ with tail=bucket needs"):
        train(masked_cache, overrides=[smooth], **options)
    assert not (tmp_path / "run").exists()
    short = ["training.max_steps=2", "training.logging_steps=1"]
    out = train(masked_cache, overrides=[step, *short], **options).folder
    assert [entry["kl.temperature"] for entry in log_of(out)] == [2, 1]
