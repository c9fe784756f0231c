"""What every command reports, on real caches."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.store import Cache

CLASSIFY = ("--task", "text-classification")
Run = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]


def test_plan_reports_to_people_what_it_reports_to_programs(
    run: Run, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    asked = ["plan", corpus, "--tokenizer", classifier, *CLASSIFY, "--out", tmp_path / "p"]
    asked += ["--max-length", 48, "--signal", "logits:dense", "--signal", "hidden:layers=1-4"]
    code, out, err = run(*asked, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["documents"] == 240
    assert told["bytes"]["total"] == sum(told["bytes"]["arrays"].values())
    code, again, _ = run(*asked)
    assert code == 0
    assert f"{told['tokens']:,}" in again
    assert f"{told['truncated']:,} documents, to 48 tokens" in again
    assert f"{told['bytes']['arrays']['hidden/L4/codes']:,}" in again
    assert "240 of 240 labelled" in again
    assert "\x1b" not in again
    assert all(line == line.rstrip() for line in again.splitlines())


def test_plan_takes_text_pairs_and_several_files(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for file in files:
        file.write_text("one,two,grade\na text,another,1.5\nonce more,and its pair,0.25\n")
    asked = ["--text-column", "one", "--text-column", "two", "--label-column", "grade"]
    code, out, err = run(
        *["plan", *files, "--tokenizer", tokenizer, *CLASSIFY, "--out", tmp_path / "p"],
        *[*asked, "--label-type", "float", "--json"],
    )
    assert code == 0, err
    told = json.loads(out)
    assert (told["text_columns"], told["label_column"]) == (["one", "two"], "grade")
    assert (told["documents"], told["problem"]) == (4, "regression")


def test_columns_that_look_like_text_are_ignored_when_told(
    run: Run, tokenizer: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.csv"
    path.write_text("text,title,summary,label\na text,one of three words,and one more such,1\n")
    asked = ["plan", path, "--tokenizer", tokenizer, *CLASSIFY, "--out", tmp_path / "p"]
    code, out, err = run(*asked, "--ignore-columns", "title")
    assert (code, out) == (2, "")
    assert err.startswith("error: the text would be column text, but column 'summary' holds text")
    code, out, err = run(*asked, "--ignore-columns", "title, summary", "--json")
    assert code == 0, err
    assert json.loads(out)["text_columns"] == ["text"]


def test_plan_sizes_signals_of_a_teacher_that_lies_elsewhere(
    run: Run, tokenizer: Path, masked_lm: Path, prose_file: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        *["plan", prose_file, "--tokenizer", tokenizer, "--task", "masked-lm", "--limit", 20],
        *["--teacher", masked_lm, "--signal", "logits:topk,k=8", "--out", tmp_path / "p", "--json"],
    )
    assert code == 0, err
    assert "logits/ids" in json.loads(out)["bytes"]["arrays"]


def test_a_second_build_has_nothing_to_do(
    run: Run, made: tuple[Path, Path], classifier: Path
) -> None:
    plan, cache = made
    code, out, err = run("build", plan, "--teacher", classifier, *CLASSIFY, "--out", cache)
    assert code == 0
    assert "nothing to do" in err
    assert "complete" in out


def test_a_dry_run_tells_what_the_build_then_makes_and_writes_nothing(
    run: Run,
    made: tuple[Path, Path],
    corpus: Path,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(
        *["build", corpus, "--teacher", classifier, *CLASSIFY, "--dry-run", "--json"],
        *["--part-tokens", 2048, "--max-length", 48],
    )
    assert code == 0, err
    told = json.loads(out)
    built = json.loads(run("inspect", made[1], "--json")[1])
    assert told["bytes"]["total"] == built["total_bytes"]
    assert told["sha256"] == built["plan"]["sha256"]
    assert list(tmp_path.iterdir()) == []


def test_inspect_tells_teacher_arrays_fidelity_and_state(run: Run, cache: Cache) -> None:
    code, out, err = run("inspect", cache.path)
    assert (code, err) == (0, "")
    told = json.loads(run("inspect", cache.path, "--json")[1])
    assert f"{told['total_bytes']:,} bytes" in out
    assert f"{told['teacher']['parameters']:,}" in out
    for array in told["arrays"]:
        assert array["name"] in out
        assert f"{array['bytes']:,}" in out
    assert "nats" in out
    assert f"complete, {cache.plan.parts} of {cache.plan.parts} parts" in out


def test_inspect_shows_plans_and_incomplete_caches(
    run: Run, made: tuple[Path, Path], tmp_path: Path
) -> None:
    code, out, _ = run("inspect", made[0])
    assert code == 0
    assert "Length of documents" in out
    copy = Path(shutil.copytree(made[1], tmp_path / "copy"))
    shutil.rmtree(copy / "complete")
    shutil.rmtree(copy / "commits" / "000000")
    code, out, _ = run("inspect", copy)
    assert code == 0
    assert "incomplete" in out
    assert "not known before the cache is complete" in out


@pytest.mark.parametrize("full", [[], ["--full"]], ids=["quick", "full"])
def test_verify_passes_a_whole_cache(run: Run, cache: Cache, full: list[str]) -> None:
    code, out, _ = run("verify", cache.path, *full, "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True


def test_verify_names_damaged_objects_and_exits_with_1(
    run: Run, cache: Cache, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(cache.path, tmp_path / "copy.zarr"))
    shard = copy / cache.layouts["logits/values"].key(1)
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    assert run("verify", copy)[0] == 0
    code, out, _ = run("verify", copy, "--full")
    assert code == 1
    assert str(shard) in out
    code, out, _ = run("verify", copy, "--full", "--json")
    assert code == 1
    assert any(str(shard) in problem for problem in json.loads(out)["problems"])
