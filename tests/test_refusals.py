"""What a refusal says is all that it takes: signals, settings, and whose loss it is."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

import kdcache
from kdcache.errors import ConfigError
from kdcache.losses.lacking import LackingError
from kdcache.store import Cache
from kdcache.training.recipe import load_recipe

TASK = "text-classification"


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory, corpus: Path, classifier: Path) -> Cache:
    out = tmp_path_factory.mktemp("refusals") / "hidden"
    signals = ["logits:dense", "hidden:layers=1-4,positions=all"]
    return kdcache.build(corpus, teacher=classifier, task=TASK, out=out, signals=signals, limit=24)


def refusal(cache: Cache, recipe: str, out: Path, *overrides: str, student: str = "") -> str:
    made: dict[str, Any] = {"student": student} if student else {"init_from_teacher": (2, 4)}
    with pytest.raises(ConfigError) as refused:
        kdcache.train(cache, recipe=recipe, out=out, overrides=overrides, device="cpu", **made)
    assert not out.exists()
    return str(refused.value)


@pytest.mark.parametrize("recipe", ["mobilebert", "tinybert", "pkd-skip", "bert-emd", "ad-kd"])
def test_a_cache_of_the_signals_that_a_refusal_names_serves_the_recipe(
    recipe: str, hidden: Cache, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    told = refusal(hidden, recipe, tmp_path / "no")
    assert told.endswith(f", all that recipe {recipe} needs")
    signals = [text.rstrip(",") for text in re.findall(r"--signal (\S+)", told)]
    assert signals
    cache = kdcache.build(
        corpus, teacher=classifier, task=TASK, out=tmp_path / "all", signals=signals, limit=24
    )
    steps = [f"{of}training.max_steps=1" for of in load_recipe(recipe).prefixes]
    kdcache.train(
        cache, recipe=recipe, out=tmp_path / "yes", overrides=steps, init_from_teacher=(2, 4),
        device="cpu", progress=False,
    )  # fmt: skip


def test_a_loss_of_a_layer_is_called_as_the_stage_that_can_be_set(
    hidden: Cache, tmp_path: Path
) -> None:
    told = refusal(hidden, "mobilebert", tmp_path / "no")
    assert told.startswith("stages.layer.losses.")
    map_ = "stages.layer.losses.hidden.layer_map=uneven"
    told = refusal(hidden, "mobilebert", tmp_path / "no", map_)
    assert told.startswith("stages.layer.losses.hidden: unknown layer map 'uneven'")


def test_the_layer_map_of_a_refusal_can_be_set(hidden: Cache, tmp_path: Path) -> None:
    told = refusal(hidden, "hidden", tmp_path / "no")
    (setting,) = re.findall(r"set (losses\.hidden\.layer_map=\S+), or build", told)
    assert setting == "losses.hidden.layer_map=2:4"
    kdcache.train(
        hidden, recipe="hidden", out=tmp_path / "yes", init_from_teacher=(2, 4), device="cpu",
        overrides=[setting, "training.max_steps=1"], progress=False,
    )  # fmt: skip


def test_a_student_that_does_not_attend_is_refused_for_a_loss(
    hidden: Cache, tmp_path: Path
) -> None:
    told = refusal(hidden, "minilmv2", tmp_path / "no", student="bilstm")
    assert told.startswith("stages.relations.losses.relations of the student: the model gives no ")


def test_of_two_caches_a_refusal_names_the_one_that_lacks(
    hidden: Cache, cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        kdcache.train(
            [hidden, cache], recipe="hidden", out=tmp_path / "no", init_from_teacher=(2, 4)
        )
    assert str(refused.value).startswith(f"{hidden.path}: losses.hidden: layer map 'uniform' needs")


@pytest.mark.parametrize("name", ["cache", "losses.zarr", "my-losses.zarr"])
def test_a_folder_is_named_whatever_it_is_called(
    name: str, cache: Cache, hidden: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(cache.path, name)
    with pytest.raises(ConfigError) as refused:
        kdcache.train([name, hidden], recipe="mobilebert", out="no", init_from_teacher=(2, 4))
    assert str(refused.value).startswith(f"{name}: stages.layer.losses.")


def test_a_refusal_is_told_to_another_process() -> None:
    error = LackingError("it lacks", "", cast(Any, None), cast(Any, None))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ConfigError)
    assert str(again) == "it lacks"
