"""benchmarks/gpu_session.py without a GPU: the shapes of topk_kl, and the table made of them."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcache_kernels.topk_kl._shapes import SHAPES, Shape

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts find each other beside themselves
stages: Any = importlib.import_module("gpu_stages")
tables: Any = importlib.import_module("gpu_table")
sys.path.pop(0)

# The interpreter computes with NumPy, which warns of the infinities that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="then a stage runs as it is")
def test_shapes_are_checked_before_they_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the interpreter runs them."""
    monkeypatch.setattr(stages, "SHAPED", (300,))
    monkeypatch.setattr(stages, "SHAPES", ((128, 4, 128), (512, 4, 128)))
    assert stages.Session(tmp_path, "cpu", 9, (0, 1)).run("compiled", 60.0)
    items = read(tmp_path / "compiled.json")["items"]
    assert [set(item) for item in items] == [{"item", "error"}] * 2


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
    rows = read(ROOT / "benchmarks" / "results" / "topk_kl_shapes_h100.json")["rows"]
    for place in ("in place", "out of place"):
        for vocab in {row["vocab"] for row in rows}:
            times = {
                Shape(row["block"], row["warps"], row["registers"]): row["seconds"]
                for row in rows
                if (row["place"], row["vocab"]) == (place, vocab) and "seconds" in row
            }
            ours = next(shape for most, shape in SHAPES[9, 0].items() if vocab <= most)
            assert times[ours] <= 1.11 * min(times.values())
