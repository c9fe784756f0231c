"""A sweep trains what its axes say, once, and picks by the dev set within the limits."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import transformers

import kdcache
from kdcache.errors import ConfigError, MismatchError, ModelError
from kdcache.evaluation.kept import read_kept
from kdcache.shipping import ship
from kdcache.shipping.run import kept_file
from kdcache.store import Cache
from kdcache.sweeping.grid import Range
from kdcache.sweeping.record import read_record
from kdcache.sweeping.result import SweepResult
from kdcache.sweeping.slicing import score_student, score_teacher, scored_folder
from kdcache_cli.main import main
from tests.conftest import Lines, write_csv

DOMAINS = ("kitchen", "garden", "garden")
FAST = {"training": {"max_steps": 2, "logging_steps": 1}, "layers": 1}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, sentences: list[Any]) -> Path:
    """Documents of the cache, whose text is then left out of training."""
    path = tmp_path_factory.mktemp("dev") / "dev.csv"
    rows = [(s.text, s.package, DOMAINS[n % 3]) for n, s in enumerate(sentences[:40])]
    return write_csv(path, rows, ("text", "label", "domain"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, cache: Cache, dev: Path) -> SweepResult:
    """Two recipes, of which the cache does not serve one, and two seeds, shipped."""
    grid = {**FAST, "recipe": ["minilm", "kd"]}
    return kdcache.sweep(
        cache,
        out=tmp_path_factory.mktemp("swept") / "s",
        grid=grid,
        seeds=2,
        dev=dev,
        threads=1,
        by=["domain", "length"],
    )


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_slices_are_those_of_what_is_scored(
    swept: SweepResult, dev: Path, classifier: Path
) -> None:
    """In float32 what `evaluate` tells of the run folder, in int8 what the shipped folder says."""
    one = swept.record.students[-1]
    found = kdcache.evaluate(
        swept.folder / one.folder, dev, teacher=classifier, by=["domain", "length"], progress=False
    )
    for column, told in found["slices"].items():
        rows = [row for row in told["rows"] if row["value"] is not None]
        most = max(rows, key=lambda row: (row["drop"]["value"], row["labelled"]))
        lost = one.slices["fp32"][column]
        for key in ("slice", "labelled", "value", "drop", "teacher", "interval"):
            assert lost[key] == most[key]
    code = (swept.folder / "shipped" / one.name / "int8" / "infer.py").read_text()
    small: dict[str, Any] = {"__name__": "infer", "__file__": str(dev)}
    exec(code, small)  # as somebody who has the folder alone
    model = small["Model"](swept.folder / "shipped" / one.name / "int8")
    with dev.open() as file:
        there = list(csv.DictReader(file))
    lost = one.slices["int8"]["domain"]
    mine = [row for row in there if row["domain"] == lost["slice"]]
    told = [said["label"] for said in model.predict([row["text"] for row in mine])]
    right = [said == row["label"] for said, row in zip(told, mine, strict=True)]
    assert lost["labelled"] == len(mine)
    assert lost["value"] == pytest.approx(sum(right) / len(right))


@pytest.mark.slow
def test_what_was_not_scored_when_it_was_shipped_is_scored_alike(
    swept: SweepResult, cache: Cache, dev: Path, tmp_path: Path
) -> None:
    one, how = swept.record.students[-1], {"device": "cpu", "trust_remote_code": False}
    model = str(swept.folder / one.folder)
    score_student(cache, model, str(dev), scored_folder(tmp_path, one.name), how)
    score_teacher(cache, None, str(dev), scored_folder(tmp_path, "teacher"), how)
    for name in (one.name, "teacher"):
        again, there = (
            read_kept(kept_file(scored_folder(folder, name), "fp32"))
            for folder in (tmp_path, swept.folder)
        )
        assert again is not None
        assert there is not None
        assert again.documents.tolist() == there.documents.tolist()
        assert again.adds.tolist() == there.adds.tolist()
        assert again.scores["accuracy"] == there.scores["accuracy"]
    kept_file(scored_folder(tmp_path, "teacher"), "fp32").write_bytes(b"PK")
    with pytest.raises(ModelError, match="is damaged"):
        read_kept(kept_file(scored_folder(tmp_path, "teacher"), "fp32"))


@pytest.mark.slow
def test_every_row_tells_the_slice_on_which_it_loses_most(swept: SweepResult) -> None:
    record, table = swept.record, swept.table()
    assert record.by == ("domain", "length")
    for row, cells in zip(record.rows, table.to_dict("records"), strict=True):
        if row.who == "teacher" and row.kind == "fp32":
            assert row.worst is None
            continue
        assert row.worst is not None
        own = next((one for one in record.students if one.name == row.worst.student), None)
        told = {} if own is None else own.slices[row.kind]
        assert row.worst.student in (row.students or ("teacher",))
        assert all(row.worst.drop >= one["drop"]["value"] for one in told.values())
        assert cells["worst_slice"] == row.worst.where
        assert cells["worst_drop"] == row.worst.drop
        assert cells["worst_documents"] == row.worst.documents


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert [one["slices"] for one in told["students"]] == [{}, {}]
    before = {one.name: one.slices for one in swept.record.students}
    again = [*map(str, words), "--by", "domain", "--max-drop", "0", "--threads", "1"]
    assert main(again) == 0
    out = capsys.readouterr().out
    assert "worst slice by domain: accuracy below the teacher in fp32" in out
    assert out.count(" domain=") == 3
    for one in read_record(swept.folder).students:
        assert one.slices["int8"]["domain"] == before[one.name]["int8"]["domain"]
        assert one.slices["fp32"]["domain"] == before[one.name]["fp32"]["domain"]
    assert not list((swept.folder / "logs").glob("worker-2.log"))


@pytest.mark.slow
def test_a_folder_keeps_to_one_dev_set(swept: SweepResult, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="dev"):
        kdcache.sweep(cache, out=swept.folder, grid=FAST, dev_split=0.1, ship=False)
    (tmp_path / "other").write_text("")
    with pytest.raises(ConfigError, match="not an empty folder"):
        kdcache.sweep(cache, out=tmp_path, grid=FAST, ship=False)


@pytest.mark.slow
def test_students_that_are_not_shipped_are_sliced_in_torch(
    masked_cache: Cache, masked_lm: Path, prose_file: Path, tmp_path: Path
) -> None:
    """Of a language model: a document is many rows, and the teacher's masks are its students'."""
    dev = tmp_path / "dev.txt"
    dev.write_text("\n".join(prose_file.read_text("utf-8").splitlines()[:30]), "utf-8")
    asked: Any = {"grid": FAST, "dev": dev, "by": "length", "max_drop": 1000.0}
    result = kdcache.sweep(masked_cache, out=tmp_path / "s", ship=False, **asked)
    (one,) = result.record.students
    found = kdcache.evaluate(
        result.folder / one.folder, dev, teacher=masked_lm, by="length", progress=False
    )
    told = found["slices"]["length"]
    most = max(told["rows"], key=lambda row: (row["drop"]["value"], row["labelled"]))
    lost = one.slices["fp32"]["length"]
    assert (lost["slice"], lost["labelled"]) == (most["slice"], most["labelled"])
    assert lost["drop"]["value"] == pytest.approx(most["drop"]["value"], abs=1e-6)
    student, teacher = result.record.rows
    assert student.picked
    assert student.worst is not None
    assert teacher.dev is not None
    assert teacher.dev.mean == pytest.approx(told["all"]["teacher"]["value"], rel=1e-6)


@pytest.mark.slow
def test_another_teacher_is_measured_anew(
    swept: SweepResult, cache: Cache, dev: Path, classifier: Path, tmp_path: Path
) -> None:
    shutil.copytree(swept.folder, tmp_path / "s")
    shutil.copytree(classifier, tmp_path / "other")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    model.classifier.weight.data.neg_()
    model.save_pretrained(tmp_path / "other")
    grid = {**FAST, "recipe": ["minilm", "kd"]}
    asked: dict[str, Any] = {"grid": grid, "seeds": 2, "dev": dev, "threads": 1}
    asked |= {"out": tmp_path / "s", "teacher": tmp_path / "other"}
    for _ in range(2):
        record = kdcache.sweep(cache, **asked).record
        (before, after) = (
            [r for r in rows if r.who == "teacher"] for rows in (swept.record.rows, record.rows)
        )
        assert [row.dev for row in before] != [row.dev for row in after]


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
    rates = [one["training.learning_rate"] for one in drawn[0]]
    assert rates == [float(f"{rate:.4g}") for rate in rates]
    both = kdcache.sweep(cache, out=tmp_path / "both", search=4, workers=2, **asked)
    assert len(both.record.students) == 4
    assert {one.state for one in both.record.students} == {"trained"}
