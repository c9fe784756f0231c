"""Curves of a run are read on a page: six panels at most."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from kdcache.training.curves import draw_curves

DEV: dict[str, Any] = {
    "metric": "accuracy",
    "points": [{"step": step, "value": step / 10} for step in (1, 2, 3)],
    "best": {"step": 3, "value": 0.3},
    "teacher": None,
}


def height(path: Path) -> int:
    """Of a PNG, in dots."""
    return int(struct.unpack(">I", path.read_bytes()[20:24])[0])


@pytest.mark.parametrize(("terms", "rows"), [(1, 2), (3, 3), (4, 2), (9, 2)])
def test_terms_share_a_panel_where_there_would_be_more_than_six(
    terms: int, rows: int, tmp_path: Path
) -> None:
    names = ["loss", *(f"loss_{i}" for i in range(terms)), "learning_rate"]
    log = [{"step": step, **dict.fromkeys(names, 1 / step)} for step in (1, 2, 3)]
    draw_curves(log, tmp_path / "curves.png", dev=DEV)
    assert height(tmp_path / "curves.png") == rows * 390
