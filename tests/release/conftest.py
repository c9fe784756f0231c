"""A copy of what is packed, and the wheels that are made of it, once a session."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.nbi", "*.nbc")


@pytest.fixture(scope="session")
def pip() -> Callable[..., str]:
    """Run this interpreter's pip and give what it prints."""

    def run(*words: object) -> str:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is packed, and beside it what must not be: tests, scripts, leavings of a build."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for root in ("kdcache", "kernels/kdcache_kernels", "cli"):
        shutil.copytree(ROOT / root, folder / root, ignore=NOT_COPIED)
    for stray in (
        "tests/test_stray.py",
        "benchmarks/stray.py",
        "kdcache/notes.txt",
        "build/lib/kdcache/gone.py",
    ):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).touch()
    return folder


@pytest.fixture(scope="session")
def wheel(tree: Path, pip: Callable[..., str]) -> Path:
    """kdcache's wheel, made as `pip wheel .` makes it but for the fetching of setuptools."""
    pip("wheel", tree, "--no-deps", "--no-build-isolation", "-w", tree / "out")
    (made,) = (tree / "out").glob("kdcache-*.whl")
    return made


@pytest.fixture(scope="session")
def kernels_wheel(tmp_path_factory: pytest.TempPathFactory, pip: Callable[..., str]) -> Path:
    """The wheel of the kernels, made where nothing else of kdcache is."""
    folder = tmp_path_factory.mktemp("kernels")
    shutil.copytree(ROOT / "kernels", folder / "copy", ignore=NOT_COPIED)
    pip("wheel", folder / "copy", "--no-deps", "--no-build-isolation", "-w", folder)
    (made,) = folder.glob("*.whl")
    return made
