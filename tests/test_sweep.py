"""A sweep trains what its axes say, once, and picks by the dev set within the limits."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kdcache
from kdcache.errors import ConfigError, MismatchError
from kdcache.shipping import ship
from kdcache.store import Cache
from kdcache.sweeping.grid import Range
from kdcache.sweeping.record import read_record
from kdcache.sweeping.result import SweepResult
from kdcache_cli.main import main
from tests.conftest import Lines, write_csv

FAST = {"training": {"max_steps": 2, "logging_steps": 1}, "layers": 1}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, sentences: list[Any]) -> Path:
    """Documents of the cache, whose text is then left out of training."""
    path = tmp_path_factory.mktemp("dev") / "dev.csv"
    return write_csv(path, [(s.text, s.package) for s in sentences[:40]])


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, cache: Cache, dev: Path) -> SweepResult:
    """Two recipes, of which the cache does not serve one, and two seeds, shipped."""
    grid = {**FAST, "recipe": ["minilm", "kd"]}
    return kdcache.sweep(
        cache, out=tmp_path_factory.mktemp("swept") / "s", grid=grid, seeds=2, dev=dev, threads=1
    )


def test_a_sweep_trains_ships_and_tells(swept: SweepResult, dev: Path, tmp_path: Path) -> None:
    record = swept.record
    names = [one.name for one in record.students]
    assert [one.state for one in record.students] == ["failed", "failed", "trained", "trained"]
    assert "query" in str(record.students[0].error)
    assert any(note.startswith("2 of 4 students failed: minilm_") for note in record.notes)
    for one in record.students[2:]:
        folder = swept.folder / one.folder
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["dev"]["best"]["value"] == one.dev
        assert metrics["dev"]["source"] == "dev.csv"
    assert [(r.who, r.kind) for r in record.rows[-2:]] == [("teacher", "fp32"), ("teacher", "int8")]
    assert all(r.bytes and r.p50_ms and r.dev for r in record.rows), record.notes
    assert [r.dev.n for r in record.rows if r.dev] == [2, 2, 1, 1]
    assert record.pick in names
    assert swept.picked == swept.folder / "students" / str(record.pick)
    assert record.picked is record.rows[0]


def test_sizes_are_those_of_what_ship_writes_with_the_same_flags(
    swept: SweepResult, dev: Path, tmp_path: Path
) -> None:
    one = swept.record.students[-1]
    made = ship(swept.folder / one.folder, tmp_path / "int8", int8=True, progress=False)
    assert made["bytes"] == one.shipped["int8"]["bytes"] < one.shipped["fp32"]["bytes"]
    for kind, measured in one.shipped.items():
        there = [p for p in (swept.folder / "shipped" / one.name / kind).iterdir() if p.is_file()]
        sizes = [p.stat().st_size for p in there if p.name not in ("README.md", "report.json")]
        assert sum(sizes) == measured["bytes"]


def test_the_table_is_a_frame_a_csv_file_and_json(swept: SweepResult) -> None:
    table = swept.table()
    assert list(table.columns[:3]) == ["model", "kind", "recipe"]
    assert table["mb"].tolist() == [one.bytes / 1e6 for one in swept.record.rows if one.bytes]
    assert len(table) == len(swept.record.rows)
    with (swept.folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(one["mb"]) for one in rows] == pytest.approx(table["mb"].tolist())
    assert read_record(swept.folder) == swept.record
    assert (swept.folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "2 students trained, picked" in repr(swept)


def test_started_again_it_keeps_what_is_there_and_goes_by_other_limits(
    swept: SweepResult, capsys: pytest.CaptureFixture[str], cache: Cache, dev: Path
) -> None:
    words = ["sweep", cache.path, "--out", swept.folder, "--dev", dev, "--seeds", "2", "--quiet"]
    words += ["--set", "recipe=kd", "--set", "training.max_steps=2"]
    words += ["--set", "training.logging_steps=1", "--set", "layers=1"]
    capsys.readouterr()
    assert main([*map(str, words), "--max-mb", "0.001", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "No student keeps to --max-mb 0.001: the smallest" in out
    assert out.count(" in int8") + out.count(" in fp32") >= 3
    assert "Nearest: " in out
    assert main([*map(str, words), "--max-mb", "20", "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pick"] in {one["name"] for one in told["students"]}
    assert not list((swept.folder / "logs").glob("worker-2.log"))


def test_a_folder_keeps_to_one_dev_set(swept: SweepResult, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="dev"):
        kdcache.sweep(cache, out=swept.folder, grid=FAST, dev_split=0.1, ship=False)
    (tmp_path / "other").write_text("")
    with pytest.raises(ConfigError, match="not an empty folder"):
        kdcache.sweep(cache, out=tmp_path, grid=FAST, ship=False)


def sweeping(*words: object) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdcache_cli", "sweep", *map(str, words)]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_after_the_fourth_and_started_again_it_trains_four(
    number: signal.Signals, cache: Cache, dev: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    words = [cache.path, "--out", folder, "--dev", dev, "--seeds", 8, "--set", "layers=1"]
    words += ["--set", "training.max_steps=60", "--no-ship"]

    def done() -> dict[str, int]:
        found = sorted(folder.glob("students/*/metrics.json"))
        return {path.parent.name: path.stat().st_mtime_ns for path in found}

    child = sweeping(*words)
    until = time.monotonic() + 300
    while len(done()) < 4 and child.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(number)
    assert child.wait(120) != 0
    first = done()
    told = Lines()
    result = kdcache.sweep(
        cache,
        out=folder,
        grid={"layers": 1, "training.max_steps": 60},
        seeds=8,
        dev=dev,
        ship=False,
        progress=told,
    )
    assert len(done()) == 8
    assert first.items() <= done().items()
    trained = [text for text in told.messages if text.partition(":")[0] in done()]
    assert len(trained) in (3, 4)  # the fifth may have been at its end
    assert {one.state for one in result.record.students} == {"trained"}
    assert result.record.rows[0].dev is not None
    assert result.record.rows[0].dev.n == 8


@pytest.mark.slow
def test_a_search_draws_the_same_stopped_or_not_and_on_two_workers_too(
    cache: Cache, dev: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    grid = {
        "layers": [1, 2],
        "training": {"max_steps": 2, "learning_rate": Range(low=1e-5, high=1e-2)},
    }
    asked: Any = {"grid": grid, "dev": dev, "ship": False}
    whole = kdcache.sweep(cache, out=tmp_path / "whole", search=4, **asked)
    kdcache.sweep(cache, out=tmp_path / "parts", search=2, **asked)
    parts = kdcache.sweep(cache, out=tmp_path / "parts", search=4, **asked)
    drawn = [[one.settings for one in result.record.students] for result in (whole, parts)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 4
    both = kdcache.sweep(cache, out=tmp_path / "both", search=4, workers=2, **asked)
    assert len(both.record.students) == 4
    assert {one.state for one in both.record.students} == {"trained"}
