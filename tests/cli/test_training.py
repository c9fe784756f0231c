"""The commands after a build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.store import Cache
from kdcache_cli.main import main
from kdcache_cli.shipped import NEEDS, read_recipes

CLASSIFY = ("--task", "text-classification")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, cache: Cache, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("student") / "model"
    command = ["train", cache.path, "--recipe", "kd", "--out", folder, "--eval", corpus, "--json"]
    command += ["--init-from-teacher", "1-3", "--set", "training.max_steps=3", "--quiet"]
    assert main([str(word) for word in command]) == 0
    return folder


def test_train_prints_json_alone(
    cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What libraries print to the descriptor counts too."""
    command = ["train", cache.path, "--recipe", "finetune", "--out", tmp_path / "s", "--json"]
    command += ["--init-from-teacher", "1-2", "--set", "training.max_steps=2"]
    code = main([str(word) for word in command])
    out, err = capfd.readouterr()
    assert code == 0, err
    told = json.loads(out)
    assert told["folder"] == str(tmp_path / "s")
    assert told["metrics"]["steps"] == 2
    assert "Warning" not in err


def test_train_refuses_an_unknown_field(run: Run, cache: Cache, tmp_path: Path) -> None:
    code, out, err = run(
        *["train", cache.path, "--recipe", "kd", "--out", tmp_path / "s"],
        *["--init-from-teacher", "1-2", "--set", "training.learning_rat=1"],
    )
    assert (code, out) == (2, "")
    assert "learning_rate" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_evaluate_prints_scores_beside_the_teachers(
    run: Run, student: Path, corpus: Path, cache: Cache, classifier: Path
) -> None:
    asked = ["evaluate", student, corpus, "--cache", cache.path, "--teacher", classifier]
    code, out, err = run(*asked, "--limit", 60, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["documents"] == 60
    assert told["teacher_rows"]["documents"] == 60
    code, out, _ = run(*asked, "--limit", 60)
    assert code == 0
    assert "accuracy, 95% interval" in out
    assert out.split()[:2] == ["model", "teacher"]


def test_recipes_are_listed_and_printed_as_they_are(run: Run) -> None:
    shipped = read_recipes()
    assert "kd" in shipped
    listed = json.loads(run("recipes", "--json")[1])
    assert {row["name"] for row in listed} == set(shipped)
    assert all(row["summary"] for row in listed)
    needs = [row["needs"] for row in listed]
    assert list(dict.fromkeys(needs)) == list(NEEDS)  # those of one need together
    table = run("recipes")[1]
    assert all(f" {name} " in table for name in shipped)
    assert [f"from {need}" for need in NEEDS] == [
        line for line in table.splitlines() if line.startswith("from ")
    ]
    for name, text in shipped.items():
        assert run("recipes", name) == (0, text, "")
