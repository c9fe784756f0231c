"""Recipes of several stages: each has its own losses, and a run of them goes on exactly."""

import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch
import transformers
from safetensors.torch import load_file

from kdcache.errors import ConfigError, MismatchError
from kdcache.training import run
from kdcache.training.recipe import load_recipe
from kdcache.training.train import train
from tests.test_trainer import assert_same_weights, log_of, narrow, weights

__all__ = ["narrow"]  # a fixture

RECIPE = """
description = "Hidden states first, then soft labels, of the head alone at last."

[training]
learning_rate = 1e-3
max_steps = 3
logging_steps = 1
save_strategy = "steps"
save_steps = 2

[[stages]]
name = "states"
[stages.losses.states]
kind = "hidden"
[stages.training]
learning_rate = 2e-3

[[stages]]
name = "both"
[stages.losses.states]
kind = "hidden"
weight = { start = 1.0, stop = 0.0 }
[stages.losses.kl]
[stages.data]
group_by_length = true

[[stages]]
name = "head"
trainable = ["classifier.*"]
[stages.losses.hard]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "three.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


class At:
    """A Progress that calls `do` when a step of a stage is done, and remembers what was said."""

    def __init__(self, stage="", step=0, do=lambda: None):
        self.stage, self.step, self.do = stage, step, do
        self.said, self.labels = [], []

    @contextmanager
    def bar(self, label, *, unit, total):
        done = 0
        self.labels.append(label)

        def advance(count):
            nonlocal done
            done += count
            if label.endswith(f"stage {self.stage}") and done == self.step:
                self.do()

        yield advance

    def say(self, message):
        self.said.append(message)


@pytest.fixture(scope="module")
def whole(recipe, cache, narrow, tmp_path_factory):
    """A run of all three stages that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return train(cache, recipe=recipe, out=out, config=narrow)


def test_every_stage_leaves_a_student_its_metrics_and_curves(whole, recipe):
    stages = whole.folder / "stages"
    assert sorted(path.name for path in stages.iterdir()) == ["both", "head", "states"]
    for name in ("states", "both", "head"):
        assert (stages / name / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert json.loads((stages / name / "metrics.json").read_text("utf-8"))["steps"] == 3
    for name in ("states", "both"):
        transformers.AutoModelForSequenceClassification.from_pretrained(stages / name)
        transformers.AutoTokenizer.from_pretrained(stages / name)
    assert not (whole.folder / "checkpoints").exists()
    assert whole.metrics["steps"] == 9
    assert set(whole.metrics["losses"]) == {"loss", "loss_hard"}
    assert set(whole.metrics["stages"]) == {"states", "both", "head"}
    assert "states: states × 1; then both: states × 1 to 0, kl × 1; then head: hard × 1" in (
        (whole.folder / "README.md").read_text("utf-8")
    )
    assert load_recipe(whole.folder / "recipe.toml").stages == load_recipe(recipe).stages


def test_the_log_counts_steps_on_and_names_the_stage(whole):
    log = log_of(whole.folder)
    assert [entry["step"] for entry in log] == list(range(1, 10))
    assert [entry["stage"] for entry in log] == ["states"] * 3 + ["both"] * 3 + ["head"] * 3
    assert [entry["learning_rate"] for entry in log[::3]] == pytest.approx([2e-3, 1e-3, 1e-3])
    assert [entry["states.weight"] for entry in log[3:6]] == pytest.approx([1, 0.5, 0])


def test_a_stage_goes_on_from_the_student_and_the_maps_of_the_one_before(whole):
    log = log_of(whole.folder)
    drawn_anew = log[0]["loss_states"]
    assert log[3]["loss_states"] < log[2]["loss_states"] < drawn_anew


def test_a_map_goes_on_over_a_stage_that_has_none(recipe, cache, narrow, tmp_path):
    """The third stage learns the states of the first, by the map as the first has left it."""
    third = ["stages.head.losses.states.kind=hidden", "stages.head.trainable=['*']"]
    overrides = [
        "stages.both.losses={kl={}}",
        *third,
        "training.max_steps=1",
        "stages.both.training.learning_rate=0",
    ]
    out = train(cache, recipe=recipe, out=tmp_path / "run", config=narrow, overrides=overrides)
    second = load_file(out.folder / "stages" / "both" / "projections.safetensors")
    first = load_file(out.folder / "stages" / "states" / "projections.safetensors")
    assert second.keys() == first.keys()
    assert all(torch.equal(second[name], first[name]) for name in first)
    assert first
    log = log_of(out.folder)
    assert log[2]["loss_states"] < log[0]["loss_states"]


def test_every_stage_is_checked_once_and_seeds_are_set_when_it_begins(
    recipe, cache, narrow, tmp_path, monkeypatch
):
    made, seeded, bound = [], [], []
    build, seed, bind = run.Run.__init__, run.set_seed, run.bind_all

    def noted(self, *args, **options):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        build(self, *args, **options)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(options["stage"])

    monkeypatch.setattr(run.Run, "__init__", noted)
    monkeypatch.setattr(run, "set_seed", lambda number: seeded.append(len(made)) or seed(number))
    monkeypatch.setattr(run, "bind_all", lambda *a, **o: bound.append(len(made)) or bind(*a, **o))
    one = ["training.max_steps=1"]
    train(cache, recipe=recipe, out=tmp_path / "run", config=narrow, overrides=one)
    assert made == ["head", "both", "states"]
    assert seeded == [3, 3, 3]
    assert bound == [0, 1, 2]  # what losses learn and remember is made once


def test_parameters_that_are_not_trainable_stay_as_they_are_to_the_bit(whole):
    before, after = weights(whole.folder / "stages" / "both"), weights(whole.folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("stage", "step", "said"),
    [
        pytest.param("states", 1, "resuming from checkpoint 1", marks=pytest.mark.slow),
        pytest.param("states", 3, "resuming from checkpoint 3", marks=pytest.mark.slow),
        ("both", 2, "resuming from checkpoint 2"),
        pytest.param("head", 3, "resuming from checkpoint 3", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_run_that_is_stopped_within_or_at_the_end_of_a_stage_goes_on_exactly(
    stage, step, said, number, whole, recipe, cache, narrow, tmp_path
):
    options = {"recipe": recipe, "out": tmp_path / "run", "config": narrow}
    with pytest.raises(KeyboardInterrupt):
        train(cache, progress=At(stage, step, lambda: os.kill(os.getpid(), number)), **options)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(ConfigError, match=rf"stopped after checkpoint {step}; continue it with"):
        train(cache, **options)
    again = At()
    resumed = train(cache, resume=True, progress=again, **options)
    assert again.said == [said]
    assert_same_weights(whole.folder, resumed.folder)
    assert log_of(whole.folder)[-1]["grad_norm"] == log_of(resumed.folder)[-1]["grad_norm"]


def test_a_run_that_dies_between_two_stages_goes_on_with_the_next(
    whole, recipe, cache, narrow, tmp_path, monkeypatch
):
    """Before the second stage has begun there is no checkpoint, only what the first came to."""
    options = {"recipe": recipe, "out": tmp_path / "run", "config": narrow}

    def die():
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(cache, progress=At("both", 1, die), **options)
    with pytest.raises(ConfigError, match="stopped after stage states; continue it with resume"):
        train(cache, **options)
    with pytest.raises(ConfigError, match="stopped after a stage of another recipe"):
        train(cache, **(options | {"recipe": "kd"}))
    other = options | {"overrides": ["stages.head.losses.hard.weight=2"]}
    with pytest.raises(MismatchError, match="weight"):
        train(cache, resume=True, **other)
    again = At()
    resumed = train(cache, resume=True, progress=again, **options)
    assert [label.rpartition(" ")[2] for label in again.labels] == ["both", "head"]
    assert_same_weights(whole.folder, resumed.folder)


@pytest.mark.slow
def test_a_stage_that_had_not_begun_keeps_its_documents_a_step_in_a_run_that_goes_on(
    recipe, cache, narrow, tmp_path
):
    """Batches half as large halve the steps of no stage: the run is the one that was stopped."""
    options = {"recipe": recipe, "out": tmp_path / "run", "config": narrow}
    stop = At("states", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(cache, progress=stop, **options)
    again = At()
    resumed = train(cache, resume=True, batch_size=4, progress=again, **options)
    assert again.said.count("a step keeps its 8 documents: 1 rank x 4 x accumulation 2") == 3
    told = {name: stage["documents"] for name, stage in resumed.metrics["stages"].items()}
    assert told == {"states": 8, "both": 24, "head": 24}


@pytest.mark.slow
def test_autocast_of_a_stage_does_not_stay_for_the_next(recipe, cache, narrow, tmp_path):
    half = ["stages.states.training.bf16=true", "stages.states.training.use_cpu=true"]
    options = {"recipe": recipe, "config": narrow, "overrides": [*half, "training.max_steps=1"]}
    unbroken = train(cache, out=tmp_path / "unbroken", **options)

    def die():
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(cache, out=tmp_path / "run", progress=At("both", 1, die), **options)
    resumed = train(cache, out=tmp_path / "run", resume=True, **options)
    assert_same_weights(unbroken.folder, resumed.folder)


def test_overrides_and_options_reach_a_stage(recipe):
    found = load_recipe(recipe, ["stages.both.training.max_steps=7", "stages.head.trainable=['*']"])
    first, second, third = found.in_stages()
    assert [one.training["max_steps"] for one in (first, second, third)] == [3, 7, 3]
    assert [one.training["learning_rate"] for one in (first, second, third)] == [2e-3, 1e-3, 1e-3]
    assert [one.data.group_by_length for one in (first, second, third)] == [False, True, False]
    assert third.trainable == ("*",)
    assert load_recipe(found) == found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.head.losses={}", r"stage 'head' has no loss; add a table such as \[stages\.head"),
        ("stages.head.name=both", "two stages of a recipe are called 'both'"),
        ("stages.hed.losses.hard.weight=1", "unknown stage 'hed'; did you mean 'head'"),
        ("stages.head.losses.hard.weigt=1", "mean 'weight'"),
        ("stages.head.data.windw=1", "field of stages.head.data 'windw'; did you mean 'window'"),
        ("stages.head.name=a.b", "needs a name of letters, digits"),
        ("stages.head.training=3", r"\[stages.training\] of a recipe is a table"),
        ("stages.head.loses=3", "field of stage 3 'loses'; did you mean 'losses'"),
        ("stages=3", r"are tables \[\[stages\]\]"),
        ("losses.kl.weight=1", "is of no stage, and it has stages: .* stages.both.losses.kl$"),
        ("losses.mse.weight=1", "is of no stage, and it has stages: .* stages.states.losses.mse$"),
        ("training.learning_rate=1", "stage 'states' has its own: set that one, --set stages.sta"),
        ("stages.head.losses.hard.weight={start=1, stop=-1}", "goes from 1 to -1"),
    ],
)
def test_stages_that_make_no_sense_are_refused_with_the_way_out(override, message, recipe):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe, [override])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ["stages.head.trainable=['clasifier.weight']"]}, "did you mean 'classifier"),
        ({"overrides": ["stages.head.training.max_step=1"]}, "mean 'training.max_steps'"),
        ({"overrides": ["stages.head.losses.hard.weight=0"]}, "every loss .* has weight 0"),
        ({"overrides": ["stages.both.losses.states.layer_map=1:9"]}, "teacher layer 9"),
        ({"lr": 1e-3}, "--lr sets training.learning_rate of all stages, and stage 'states' has"),
    ],
)
def test_a_stage_that_cannot_be_served_is_refused_before_the_first_begins(
    options, message, recipe, cache, narrow, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        train(cache, recipe=recipe, out=tmp_path / "run", config=narrow, **options)
    assert not (tmp_path / "run").exists()


def test_dev_documents_are_held_out_of_all_stages_and_choose_in_the_last(
    recipe, cache, narrow, tmp_path, monkeypatch
):
    spied, leave = [], run.without
    monkeypatch.setattr(run, "without", lambda dev, *rest: spied.append(dev) or leave(dev, *rest))
    out = tmp_path / "run"
    own = {"overrides": ["stages.head.training.seed=5"]}  # which draws the split for all of them
    result = train(cache, recipe=recipe, out=out, config=narrow, dev_split=0.25, **own)
    told = result.metrics["dev"]
    left_out = spied.pop()
    assert spied
    assert all(one is left_out for one in spied)
    assert told["documents"] == 60
    assert {point["step"] for point in told["points"]} == {9}  # as the log and its curves count
    assert {point["step"] for point in result.metrics["stages"]["head"]["dev"]["points"]} == {3}
    card = (out / "README.md").read_text("utf-8")
    assert f"those of step 9 (epoch {told['best']['epoch']:.3g} of stage head), the best" in card
    assert "dev" not in result.metrics["stages"]["states"]


def test_annealing_kd_learns_growing_logits_and_then_labels(cache, narrow, tmp_path):
    overrides = ["training.max_steps=10", "training.logging_steps=1"]
    result = train(
        cache, recipe="annealing-kd", out=tmp_path / "run", config=narrow, overrides=overrides
    )
    log = log_of(result.folder)
    scales = [entry["logit_mse.scale"] for entry in log[:10]]
    assert scales == pytest.approx([i / 10 for i in range(1, 11)])
    assert all("loss_hard" in entry for entry in log[10:])
