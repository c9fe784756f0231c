"""benchmarks/gpu_session.py without a GPU: its plan, what of it a CPU goes through, its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcache_kernels.topk_kl._shapes import SHAPES, Shape
from tests.scripts import BENCHMARKS, script_of

session = script_of("gpu_session")
runs = script_of("gpu_run")
stages = script_of("gpu_stages")
times = script_of("gpu_times")
whole = script_of("gpu_whole")
pipeline = script_of("gpu_pipeline")
counters = script_of("gpu_counters")
tables = script_of("gpu_table")

# The interpreter computes with NumPy, which warns of the infinities that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CALL = 540  # seconds of a run on a machine that is lent


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_two_runs_hold_every_stage_once_and_end_in_time() -> None:
    for batches in session.GROUPS.values():
        assert sum(max(map(session.limit, batch)) for batch in batches) <= CALL
    every = [name for batches in session.GROUPS.values() for batch in batches for name in batch]
    assert sorted(every) == sorted(stages.STAGES)
    for stage in stages.STAGES.values():
        labels = [" ".join(map(str, item)) for item in stage.items()]
        assert len(set(labels)) == len(labels) > 0


def test_a_stage_goes_on_after_what_an_earlier_run_found(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(session: Any, number: int) -> dict[str, Any]:
        asked.append(number)
        if number == 2 and asked.count(2) == 1:
            raise ValueError("a kernel failed\nand more")
        return {"absent": "a package"} if number == 3 else {"seconds": float(number)}

    stage = runs.Stage(answer, lambda: [(n,) for n in (1, 2, 3, 4)], seconds=60)
    here = runs.Session(tmp_path, "cpu")
    late = {"left_out": "out of time"}
    assert here.run("some", stage, -1.0)
    items = read(tmp_path / "some.json")["items"]
    assert items == [{"item": str(number), **late} for number in (1, 2, 3, 4)]
    assert not here.run("some", stage)
    found = read(tmp_path / "some.json")
    assert [item.get("seconds") for item in found["items"]] == [1.0, None, None, 4.0]
    assert found["items"][1]["failed"] == "ValueError: a kernel failed"
    assert found["machine"]["torch"] == torch.__version__
    assert here.run("some", stage)
    assert asked == [1, 2, 3, 4, 2, 3]
    assert [item.get("seconds") for item in read(tmp_path / "some.json")["items"]] == [
        1,
        2,
        None,
        4,
    ]


def test_processes_of_a_stage_share_its_items_and_make_one_file(tmp_path: Path) -> None:
    stage = runs.Stage(lambda session, n: {"seconds": n}, lambda: [(n,) for n in range(5)], 60)
    for turn in range(2):  # the second run is that of one process, as after a kill
        for shard in range(2 - turn):
            runs.Session(tmp_path, "cpu").run("some", stage, shard=(shard, 2))
        session.merge(tmp_path, "some")
        assert [path.name for path in tmp_path.iterdir()] == ["some.json"]
        items = read(tmp_path / "some.json")["items"]
        assert sorted(item["seconds"] for item in items) == [0, 1, 2, 3, 4]


def test_what_needs_a_gpu_is_left_out_and_told(tmp_path: Path) -> None:
    for name, stage in stages.STAGES.items():
        if stage.gpu:
            assert runs.Session(tmp_path, "cpu").run(name, stage)
            items = read(tmp_path / f"{name}.json")["items"]
            assert {item["left_out"] for item in items} == {"needs a GPU"}
            assert len(items) == len(list(stage.items()))


@pytest.mark.parametrize("name", ["beyond_2_31", "races"])
def test_a_stage_of_checks_runs_on_a_cpu(name: str, tmp_path: Path) -> None:
    stage = stages.STAGES[name]
    assert runs.Session(tmp_path, "cpu").run(name, stage)
    items = read(tmp_path / f"{name}.json")["items"]
    assert len(items) == len(list(stage.items()))
    assert not [item for item in items if "left_out" in item]


@pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="Triton does not interpret there",
)
def test_shapes_are_checked_and_timed_and_make_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the interpreter runs them."""
    monkeypatch.setattr(times, "SHAPED", (30522,))
    monkeypatch.setattr(times, "SHAPES", ((128, 4, 128),))
    here = runs.Session(tmp_path, "cpu")
    for name, found in (
        ("compiled", [{"item", "error"}]),
        ("shapes", [{"item", "error", "seconds"}] * 2),
    ):
        assert here.run(name, stages.STAGES[name]._replace(every=1))
        assert [set(item) for item in read(tmp_path / f"{name}.json")["items"]] == found
    monkeypatch.setattr(sys, "argv", ["gpu_table.py", str(tmp_path / "shapes.json")])
    tables.main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("(9, 0): {sys.maxsize: Shape(")


def test_headlines_of_wide_hidden_states_too_are_timed_before_the_rest() -> None:
    """A session may end before the list does."""
    eager = [item for item in times.to_time() if item[-1] == "eager"]
    headline = [item[:2] in times.HEADLINES for item in eager]
    first = headline.index(False)
    assert not any(headline[first:])
    wide = [(op, vocab) for op, _, vocab, hidden, _ in eager[:first] if hidden == 4096]
    assert wide == [("linear_topk_kl", vocab) for vocab in times.VOCABS[:2]]
    assert {hidden for *_, hidden, _ in eager[first - len(wide) : first]} == {4096}


def test_times_go_into_one_report_which_a_later_run_goes_on_with(tmp_path: Path) -> None:
    some = [("topk_encode", "", 1271, 768, "eager"), ("quantize_rows", "", 30522, 768, "eager")]
    for number in (1, 2):
        stage = runs.Stage(times.timed, lambda number=number: some[:number], 60)
        assert runs.Session(tmp_path, "cpu").run("times", stage)  # a session is one process
        rows = read(tmp_path / "kernels.json")["rows"]
        assert [row["op"] for row in rows] == [item[0] for item in some[:number]]
    assert all(item["seconds"] > 0 for item in read(tmp_path / "times.json")["items"])


def test_a_machine_without_a_requirement_is_told_what_to_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gpu_pipeline", None)
    monkeypatch.setattr(whole, "installed", lambda name: None if name == "zarr" else "1.0")
    assert runs.Session(tmp_path, "cpu").run("pipeline", stages.STAGES["pipeline"])
    tiny, _, large, _ = read(tmp_path / "pipeline.json")["items"]
    assert "gpu_pipeline" in tiny["absent"]
    assert tiny["carry"] == ["zarr>=3.1"]
    assert large["left_out"] == "needs a GPU"


def test_waits_are_counted_by_the_part_they_are_in() -> None:
    def event(name: str, ts: float, dur: float, cat: str = "cuda_runtime") -> dict[str, Any]:
        return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": cat}

    events = [
        event("forward", 0, 10, "user_annotation"),
        event("loss kl", 4, 3, "user_annotation"),
        event("optimizer", 20, 5, "user_annotation"),
        event("cudaStreamSynchronize", 5, 1),
        event("cudaStreamSynchronize", 15, 1),
        event("aten::_local_scalar_dense", 21, 1, "cpu_op"),
        event("cudaDeviceSynchronize", 30, 1),  # a profile's own
        {"ph": "M", "name": "forward"},
    ]
    assert pipeline.waits(events, {"forward", "loss kl", "optimizer"}) == {
        "synchronisations": {"loss kl": 1, "other": 1},
        "scalars read": {"optimizer": 1},
    }


PRINTED = """==PROF== Connected to process 7
==PROF== Profiling "rows_kernel": 0%....100% - 1 pass
"ID","Kernel Name","dram__bytes_read.sum","sm__warps_active.avg.pct_of_peak_sustained_active"
"","","byte","%"
"0","rows_kernel","500,000,000","48.5"
==PROF== Disconnected from process 7
"""


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (f"cat <<'END'\n{PRINTED}END", {"bytes_read": 5e8, "occupancy_percent": 48.5}),
        ("echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1", {"absent": "ERR_NVGPUCTRPERM"}),
    ],
)
def test_counters_of_the_profiler_are_read_or_absent(
    script: str, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ncu = tmp_path / "ncu"
    ncu.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    ncu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answer = counters.counted(runs.Session(tmp_path, "cpu"), *counters.COUNTED)
    assert answer.keys() - {"least_bytes"} == found.keys()
    for name, value in found.items():
        assert value == answer[name] if name != "absent" else value in answer[name]


@pytest.mark.slow
def test_all_stages_run_on_a_cpu_and_write_what_they_found(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_session.py"), str(tmp_path)]
    command += ["--device", "cpu", "--scale", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in tmp_path.glob("*.json")} == {*stages.STAGES, "kernels"}
    for name, stage in stages.STAGES.items():
        items = read(tmp_path / f"{name}.json")["items"]
        assert len(items) == len(list(stage.items()))
        assert not [item for item in items if item.get("left_out") == "out of time"]
        assert not [item for item in items if {"wrong", "failed", "absent"} & set(item)]
    build, train, *_ = read(tmp_path / "pipeline.json")["items"]
    assert build["documents_per_s"] > 0
    assert build["goal"]["share"] == pipeline.GOAL
    assert 0 <= train["waiting_for_data_seconds"] < train["seconds"]
    assert train["waits"]["synchronisations"] == {}
    assert {row["op"] for row in read(tmp_path / "kernels.json")["rows"]} == {
        item[0] for item in times.to_time()
    }


def test_the_entry_that_a_session_makes_is_python_for_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [{"item": f"in place {v} 256 4 128", "seconds": 1.0} for v in (300, 1271)]
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps({"items": items}), "utf-8")
    monkeypatch.setattr(sys, "argv", ["gpu_table.py", str(path), "--capability", "8.0"])
    tables.main()
    printed = capsys.readouterr().out.strip()
    assert printed == "(8, 0): {sys.maxsize: Shape(256, 4, 128)},"
    path.write_text(json.dumps({"items": [{"item": "x", "left_out": "out of time"}]}), "utf-8")
    with pytest.raises(SystemExit, match="holds no times"):
        tables.main()


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
@pytest.mark.parametrize("several", [False, True])
def test_the_entry_is_written_into_the_table_in_the_place_of_an_earlier_one(
    capability: tuple[int, int], several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabularies = range(1000, 9000, 1000) if several else (300,)
    items = [
        {"item": f"in place {v} {256 + 256 * (v // 1000 % 2)} 4 128", "seconds": 1.0}
        for v in vocabularies
    ]
    times, table = tmp_path / "shapes.json", tmp_path / "_shapes.py"
    times.write_text(json.dumps({"items": items}), "utf-8")
    table.write_text(tables.SOURCE.read_text("utf-8"), "utf-8")
    command = ["gpu_table.py", str(times), "--capability", ".".join(map(str, capability))]
    monkeypatch.setattr(sys, "argv", [*command, "--write", str(table)])
    for _ in range(2):  # the second time it is there already
        tables.main()
    found: dict[str, Any] = {"__name__": "written"}
    exec(compile(table.read_text("utf-8"), str(table), "exec"), found)  # what it is as a module
    assert list(found["SHAPES"]) == sorted({*SHAPES, capability})
    entry = found["SHAPES"].pop(capability)
    assert [tuple(shape) for shape in entry.values()] == [
        (256 + 256 * (n % 2), 4, 128) for n in (range(1, 9) if several else [0])
    ]
    assert list(entry)[-1] == sys.maxsize
    assert found["SHAPES"] == {k: v for k, v in SHAPES.items() if k != capability}
    formatted = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "100"]
    assert subprocess.run([*formatted, str(table)], check=False).returncode == 0


def test_a_shape_holds_up_to_the_middle_between_two_vocabularies() -> None:
    times = {
        ("in place", 100, "64 1 8"): 3.0,
        ("in place", 100, "32 1 8"): 4.0,
        ("out of place", 100, "64 1 8"): 5.0,
        ("out of place", 100, "32 1 8"): 3.0,
        ("in place", 400, "64 1 8"): 1.0,
        ("out of place", 400, "64 1 8"): 1.0,
        ("in place", 400, "32 1 8"): 0.5,  # and wrong out of place
        ("in place", 900, "64 1 8"): 1.0,
        ("out of place", 900, "64 1 8"): 1.0,
    }
    items: list[dict[str, Any]] = [
        {"item": f"{place} {vocab} {shape}", "seconds": seconds}
        for (place, vocab, shape), seconds in times.items()
    ]
    items.append({"item": "out of place 400 32 1 8", "wrong": "off by 1"})
    found = tables.fastest(items)
    assert found == {100: (32, 1, 8), 400: (64, 1, 8), 900: (64, 1, 8)}
    assert tables.bounds(found) == {200: (32, 1, 8), sys.maxsize: (64, 1, 8)}


def test_the_committed_table_is_near_the_fastest_of_what_was_timed() -> None:
    """Within 10%: the faster ones spill where there are labels, which decision 29 tells."""
    rows = read(BENCHMARKS / "results" / "topk_kl_shapes_h100.json")["rows"]
    for place in ("in place", "out of place"):
        for vocab in {row["vocab"] for row in rows}:
            times = {
                Shape(row["block"], row["warps"], row["registers"]): row["seconds"]
                for row in rows
                if (row["place"], row["vocab"]) == (place, vocab) and "seconds" in row
            }
            ours = next(shape for most, shape in SHAPES[9, 0].items() if vocab <= most)
            assert times[ours] <= 1.11 * min(times.values())
