"""What docs/python.md shows is run, one example after the other."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import kdcache
import kdcache.losses
from kdcache.store import Cache
from tests.pages import DOCS, blocks, prose, run_python


def test_the_examples_run_and_come_to_what_the_page_says(
    cache: Cache, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache.zarr").symlink_to(str(cache.path))
    (tmp_path / "test.csv").write_bytes(corpus.read_bytes())
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")  # where a class of the page is imported from
    monkeypatch.setitem(sys.modules, "page", module)
    names = run_python(blocks(DOCS / "python.md", "python"), vars(module))
    assert names["scores"]["documents"] == names["beside"]["documents"] == 240
    assert type(names["again"]) is names["Convolutional"]
    for home in ("both/student-1", "both/student-2"):
        assert kdcache.open_student(home)
    assert names["trainer"].state.global_step == 4
    assert set(names["terms"]) == {"kl", "hard", "hidden"}
    for value in (names["total"], names["apart"]):
        assert torch.isfinite(value)
        assert value.requires_grad


def test_functions_and_names_of_the_page_are_there() -> None:
    page = prose(DOCS / "python.md")
    table = page[page.index("| function |") :].splitlines()[2:]
    named = [line.split("`")[1] for line in table if line.startswith("| `")]
    assert len(named) == 5
    for name in named:
        function = getattr(kdcache.losses, name)
        assert name in kdcache.losses.__all__
        assert function.__doc__
