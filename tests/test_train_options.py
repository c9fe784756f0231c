"""What `train` takes beside a recipe: short names of its fields, callbacks, models by folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import transformers

import kdcache
from kdcache.building.builder import estimate
from kdcache.errors import ConfigError, KdcacheError
from kdcache.store import Cache
from kdcache.training.arguments import training_arguments
from kdcache.training.options import SHORTHANDS, with_shorthands, with_student
from kdcache.training.recipe import load_recipe
from kdcache_cli.main import main

GIVEN: dict[str, Any] = {"seed": 7, "epochs": 1, "lr": 2e-3, "batch_size": 120, "device": "cpu"}
FIELDS = {"seed": 7, "num_train_epochs": 1, "learning_rate": 2e-3, "use_cpu": True}


class Made(transformers.TrainerCallback):
    """Counts the runs of all its instances: transformers makes one of a class."""

    begun = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        Made.begun += 1


class Steps(transformers.TrainerCallback):
    """Remembers steps and losses, and stops at a step."""

    def __init__(self, stop: int = 99) -> None:
        self.stop, self.seen, self.logged = stop, 0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen += 1
        if self.seen >= self.stop:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logged += "loss_kl" in logs


def test_every_shorthand_is_tried_here_and_sets_a_field_that_is_accepted(tmp_path: Path) -> None:
    assert set(GIVEN) == set(SHORTHANDS)
    made = with_shorthands(load_recipe("kd"), GIVEN, ())
    args = training_arguments(made, tmp_path)
    assert {name: getattr(args, name) for name in FIELDS} == FIELDS
    assert args.per_device_train_batch_size == 120


def test_none_leaves_the_recipe_as_it_is_and_auto_leaves_the_device_to_it() -> None:
    recipe = load_recipe("kd")
    assert with_shorthands(recipe, dict.fromkeys(SHORTHANDS), ()) == recipe
    assert with_shorthands(recipe, {"device": "auto"}, ()) == recipe


def test_a_number_of_numpys_is_written_as_toml_knows_it(tmp_path: Path) -> None:
    import numpy as np

    made = with_shorthands(load_recipe("kd"), {"lr": np.float64(1e-4), "seed": np.int64(3)}, ())
    (tmp_path / "r.toml").write_text(made.to_toml())
    assert load_recipe(tmp_path / "r.toml") == dataclasses.replace(made)


@pytest.mark.parametrize("name", SHORTHANDS)
def test_a_shorthand_beside_an_override_of_its_field_is_refused(name: str) -> None:
    override = f"training.{SHORTHANDS[name]}=1"
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag} and --set {override} set the same field"):
        with_shorthands(load_recipe("kd"), {name: GIVEN[name]}, [override])


def test_epochs_beside_a_number_of_steps_are_refused() -> None:
    recipe = load_recipe("kd", ["training.max_steps=5"])
    with pytest.raises(ConfigError, match=r"--epochs has no effect beside training\.max_steps=5"):
        with_shorthands(recipe, {"epochs": 2}, ())


def test_shorthands_of_the_command_line_are_in_the_recipe_of_the_run(
    cache: Cache, tmp_path: Path
) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in GIVEN.items()]
    command = ["train", str(cache.path), "--recipe", "kd", "--out", str(tmp_path / "s"), *flags]
    assert main([*command, "--init-from-teacher", "1-2", "--quiet", "--json"]) == 0
    training = load_recipe(tmp_path / "s" / "recipe.toml").training
    assert {**FIELDS, "per_device_train_batch_size": 120}.items() <= training.items()


def test_callbacks_are_called_and_may_stop_a_run_whose_last_losses_are_kept(
    cache: Cache, tmp_path: Path
) -> None:
    steps = Steps(stop=3)
    result = kdcache.train(
        cache, out=tmp_path / "s", init_from_teacher=[1], callbacks=[steps, Made], batch_size=16
    )
    assert (steps.seen, steps.logged, Made.begun) == (3, 1, 1)
    assert result.metrics["steps"] == 3
    assert result.metrics["losses"]["loss_kl"] > 0


Wrong = dict[str, Any]
WRONG: dict[str, tuple[Wrong, str]] = {
    "a callback alone": ({"callbacks": 3}, "callbacks is a list of .*TrainerCallback.*; got int"),
    "another callable": ({"callbacks": [print]}, "TrainerCallback objects; got builtin_function"),
    "a GPU of none": ({"device": "cuda:9"}, "device 'cuda:9' is not there"),
    "another device": ({"device": "gpu"}, "unknown device 'gpu'; use auto, cpu, cuda"),
    "a learning rate in words": ({"lr": "fast"}, "training.learning_rate must be of type float"),
    "a batch of nothing": ({"batch_size": 0}, r"per_device_train_batch_size must be 1 or more"),
    "half a seed": ({"seed": 0.5}, "training.seed must be of type int"),
    "a table for a recipe": ({"recipe": {}}, "a recipe is named by"),
    "one layer without a list": ({"init_from_teacher": 2}, r"list of teacher layers such as"),
    "layers in words": ({"init_from_teacher": "top"}, r"list of teacher layers such as"),
    "an override alone": ({"overrides": "lr=1e-3"}, r"mean 'training\.learning_rate'"),
    "an override twice": ({"overrides": "training.seed=1", "seed": 2}, "set the same field"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    cache: Cache, tmp_path: Path, name: str
) -> None:
    given, message = WRONG[name]
    with pytest.raises(ConfigError, match=message) as caught:
        kdcache.train(cache, **{"out": tmp_path / "s", "init_from_teacher": [1], **given})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_one_text_stands_for_a_list_of_one(
    cache: Cache, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"teacher": classifier, "task": "text-classification"}
    found = estimate(corpus, signals="hidden:layers=1", text_columns="text", **given)
    assert list(found.signals) == ["hidden"]
    with pytest.raises(ConfigError, match=r"merge takes two caches or more, .*; got 1"):
        kdcache.merge(cache.path, tmp_path / "m")  # type: ignore[arg-type]
    made = load_recipe("kd", "data.window=7")
    assert made.data.window == 7
    assert with_student(made, None, "1-2", None).student == {"init_from_teacher": [1, 2]}


def test_models_and_tokenizers_in_memory_are_refused_by_every_function_that_wants_a_folder(
    cache: Cache, classifier: Path, corpus: Path, tmp_path: Path
) -> None:
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    words: Any = transformers.AutoTokenizer.from_pretrained(classifier)
    task: Any = "text-classification"
    out = tmp_path / "out"
    calls: dict[str, Any] = {
        "config": lambda: kdcache.train(cache, config=model.config, out=out),
        "teacher": lambda: kdcache.build(corpus, teacher=model, task=task, out=out),
        "build's tokenizer": lambda: kdcache.build(
            corpus, teacher=classifier, tokenizer=words, task=task, out=out
        ),
        "plan's tokenizer": lambda: kdcache.plan(corpus, tokenizer=words, task=task, out=out),
        "model": lambda: kdcache.evaluate(model, corpus),
        "evaluate's teacher": lambda: kdcache.evaluate(classifier, corpus, teacher=model),
        "cache": lambda: kdcache.verify(cache),  # type: ignore[arg-type]
    }
    for what, call in calls.items():
        with pytest.raises(KdcacheError, match=r"is named by its folder or .*; got a") as caught:
            call()
        assert "\n" not in str(caught.value), what
    assert list(tmp_path.iterdir()) == []
