"""Ways to run the command line: in this process, and as a person does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdcache_cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where logs of unexpected errors go: not into the home of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start `python` with the arguments given, the source roots on its path."""

    def call(*arguments: object, **more: Any) -> subprocess.Popen[str]:
        paths = os.pathsep.join(str(ROOT / where) for where in (".", "kernels", "cli"))
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    return call


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, classifier: Path
) -> tuple[Path, Path]:
    """A plan, and the cache built from it, by the command line."""
    folder = tmp_path_factory.mktemp("made")
    task = ("--task", "text-classification")
    plan = ["plan", corpus, "--tokenizer", classifier, *task, "--out", folder / "p"]
    build = ["build", folder / "p", "--teacher", classifier, *task, "--out", folder / "c"]
    for command in ([*plan, "--part-tokens", 2048, "--max-length", 48], build):
        assert main([*map(str, command), "--quiet", "--json"]) == 0
    return folder / "p", folder / "c"
