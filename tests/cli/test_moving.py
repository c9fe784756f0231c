"""Caches that move: by URL through every command, copied, merged and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.store import Cache, open_cache

CLASSIFY = ("--task", "text-classification")
Run = Callable[..., tuple[int, str, str]]


def told(run: Run, *arguments: object) -> dict[str, object]:
    code, out, err = run(*arguments, "--json", "--quiet")
    assert code == 0, err
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


def test_every_command_takes_urls(
    run: Run, bucket: str, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    plan, cache, student = f"{bucket}/p", f"{bucket}/c", tmp_path / "student"
    asked = ["--max-length", 48, "--part-tokens", 2048, "--limit", 60]
    told(run, "plan", corpus, "--tokenizer", classifier, *CLASSIFY, *asked, "--out", plan)
    built = told(run, "build", plan, "--teacher", classifier, *CLASSIFY, "--out", cache)
    assert built["path"] == cache
    assert told(run, "inspect", plan)["documents"] == 60
    assert told(run, "inspect", cache) == built
    assert told(run, "verify", cache, "--full")["ok"] is True
    trained = ["--recipe", "kd", "--init-from-teacher", "2-4", "--out", student]
    trained += ["--eval", corpus, "--set", "training.max_steps=2"]
    told(run, "train", cache, *trained)
    assert "teacher_rows" in told(run, "evaluate", student, corpus, "--cache", cache)
    assert not Path("s3:").exists()


def test_copy_says_what_it_did(run: Run, bucket: str, cache: Cache, tmp_path: Path) -> None:
    first = told(run, "copy", cache.path, f"{bucket}/c")
    assert first["out"] == f"{bucket}/c"
    assert first["objects"] == first["written_objects"]
    again = told(run, "copy", cache.path, f"{bucket}/c")
    assert (again["objects"], again["written_objects"]) == (first["objects"], 0)
    code, out, err = run("copy", f"{bucket}/c", tmp_path / "back")
    assert code == 0
    assert f"{first['bytes']:,} bytes" in out
    assert "there before" not in out
    assert "copying" in err
    code, out, _ = run("copy", f"{bucket}/c", tmp_path / "back", "--quiet")
    assert f"{first['objects']} objects" in out


@pytest.fixture(scope="module")
def two(folder: Path, made: tuple[Path, Path], classifier: Path) -> tuple[Path, Path]:
    """Caches of the plan of `made`: its own, and one of hidden states."""
    from kdcache_cli.main import main

    out = folder / "more.zarr"
    signal = ("--signal", "hidden:layers=2-4,positions=all")
    command = ["build", made[0], "--teacher", classifier, *CLASSIFY, "--out", out, *signal]
    assert main([*map(str, command), "--quiet", "--json"]) == 0
    return made[1], out


def test_merge_makes_one_cache(run: Run, two: tuple[Path, Path], tmp_path: Path) -> None:
    answer = told(run, "merge", *two, tmp_path / "both")
    assert answer["written_objects"] == answer["objects"]
    assert list(open_cache(tmp_path / "both").signals) == ["logits", "hidden"]
    code, out, _ = run("inspect", tmp_path / "both")
    assert code == 0
    assert "signal hidden" in out
    assert "further teachers" not in out


def test_merge_refuses_what_differs(
    run: Run, two: tuple[Path, Path], masked_cache: Cache, tmp_path: Path
) -> None:
    code, out, err = run("merge", two[0], masked_cache.path, tmp_path / "both")
    assert (code, out) == (2, "")
    assert "is of another plan than" in err
    code, _, err = run("merge", two[0], tmp_path / "both")
    assert code == 2
    assert "merge takes two caches or more" in err


@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_export_writes_a_file_for_each_part(
    run: Run, cache: Cache, form: str, tmp_path: Path
) -> None:
    answer = told(run, "export", cache.path, tmp_path / "out", "--format", form)
    assert answer["files"] == [f"part-{n:06d}.{form}" for n in range(cache.plan.parts)]
    assert answer["files"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    code, out, err = run("export", cache.path, tmp_path / "raw", "--raw", "--format", form)
    assert code == 0
    assert f"{cache.plan.parts}" in out
    assert "exporting" in err
    code, _, err = run("export", cache.path, tmp_path / "x", "--format", "csv")
    assert code == 2
    assert "unknown format 'csv'" in err


@pytest.mark.parametrize("command", ["export", "inspect", "train"])
def test_an_unknown_teacher_is_named(run: Run, cache: Cache, command: str, tmp_path: Path) -> None:
    more = {"export": [tmp_path / "x"], "train": ["--recipe", "kd", "--out", tmp_path / "x"]}
    code, _, err = run(command, cache.path, *more.get(command, []), "--teacher", "large")
    assert code == 2
    assert "holds what one teacher said; open it without naming 'large'" in err
    assert not (tmp_path / "x").exists()
