"""The comparison of recipes on one teacher, without its trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdcache.losses.schedules import is_on
from kdcache.training.recipe import load_recipe
from tests.scripts import script_of


@pytest.fixture(scope="module")
def script() -> Any:
    return script_of("methods")


@pytest.fixture(scope="module")
def settings() -> Any:
    return script_of("settings")


@pytest.fixture(scope="module")
def everywhere() -> Any:
    return script_of("everywhere")


@pytest.fixture(scope="module")
def spoken() -> Any:
    return script_of("language_models")


def test_what_takes_more_than_the_corpus_is_compared_with_a_row_before_it(script: Any) -> None:
    known = set(script.recipes())
    for name, way in script.more(None, None).items():
        assert load_recipe(way.recipe or name).name
        assert way.over in known
        known.add(name)


def test_few_labels_are_those_of_the_first_training_documents(everywhere: Any) -> None:
    rows = [{"text": str(place), "label": "yes"} for place in range(1000)]
    place = everywhere.Place(rows=lambda data: rows, train=400, labels=30)
    parts = everywhere.parts(place, rows)
    kept = {name: [bool(row["label"]) for row in part] for name, part in parts.items()}
    assert kept == {"dev": [True] * 100, "test": [True] * 400, "train": [True] * 30 + [False] * 370}
    assert len({row["text"] for part in parts.values() for row in part}) == 900


def test_what_documents_add_to_a_mean_over_tokens_has_that_mean(spoken: Any) -> None:
    seeds = [{"home": [[3, 1, 6.0], [1, 1, 0.5]]}, {"home": [[3, 3, 1.0], [1, 0, 2.0]]}]
    assert spoken.shares(seeds, "home", 1).mean(1).tolist() == [2 / 4, 3 / 4]
    assert spoken.shares(seeds, "home", 2).mean(1).tolist() == [6.5 / 4, 3.0 / 4]


def test_what_is_a_recipes_own_is_left_out_by_settings_that_it_takes(script: Any) -> None:
    for name in script.recipes():
        off = script.without_own(load_recipe(name))
        for stage in load_recipe(name, off).in_stages() if off else ():
            found = stage.losses.items()
            left = {loss for loss, one in found if is_on(loss, one, stage.schedules)}
            assert left <= {*script.COMMON} or stage.training["learning_rate"] == 0, (name, off)
    assert script.without_own(load_recipe("kd")) == []
    assert script.without_own(load_recipe("tinybert"))
    assert script.without_own(load_recipe("l2a")) == ["data.example_weights="]


def test_the_picture_has_what_was_compared_with_kd(script: Any, tmp_path: Path) -> None:
    gain = {"difference": 0.01, "both": [-0.01, 0.03], "documents": [0.0, 0.02]}
    gains: tuple[dict[str, Any], ...] = ({"kd": gain}, {})
    compared, alone = ({f"{place}_gains": one for place in ("home", "away")} for one in gains)
    script.draw(tmp_path / "found.png", {"hidden": compared, "finetune": alone}, "Two layers")
    assert (tmp_path / "found.png").stat().st_size


def test_settings_beside_those_compared_are_taken_and_differ(settings: Any, script: Any) -> None:
    for name in script.recipes():
        recipe = load_recipe(name)
        for off in filter(None, (settings.heavier(recipe, factor) for factor in (0.25, 4.0))):
            other = load_recipe(name, off)
            weights = [
                [loss.weight for stage in one.in_stages() for loss in stage.losses.values()]
                for one in (recipe, other)
            ]
            assert weights[0] != weights[1], (name, off)
    assert settings.heavier(load_recipe("kd"), 4.0) == []
    assert settings.heavier(load_recipe("nst"), 4.0) == ["losses.nst.weight=50.0"]
    assert settings.heavier(load_recipe("skdbert"), 2.0) == ["losses.kl.weight=1.0"]


def test_a_rate_beyond_is_past_the_better_of_the_two(settings: Any) -> None:
    beyond, same = settings.SETTINGS["beyond"], settings.SETTINGS["longer"]
    assert settings.rate_of(beyond, 4e-3, (1e-3, 4e-3)) == pytest.approx(1.6e-2)
    assert settings.rate_of(beyond, 1e-3, (1e-3, 4e-3)) == pytest.approx(2.5e-4)
    assert settings.rate_of(same, 1e-3, (1e-3, 4e-3)) == 1e-3
