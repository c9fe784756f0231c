"""Numba's disk cache: kernels read from it compute what they did where they were compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("every_case.py")


def results(cache: Path, *arguments: str) -> list[str]:
    """What `every_case.py` prints in a process of its own over a folder of kernels, sorted."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def files(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


@pytest.mark.slow  # it compiles every kernel
def test_kernels_from_the_disk_give_the_bits_of_the_process_that_compiled_them(tmp_path):
    compiled = results(tmp_path)
    written = files(tmp_path)
    assert written
    assert compiled
    assert results(tmp_path) == compiled
    assert results(tmp_path, "-r") == compiled  # whichever kernel is read first
    assert files(tmp_path) == written
