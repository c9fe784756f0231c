"""Numba's disk cache: kernels read from it compute what they did where they were compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import hashlib, itertools, sys
import torch
from kdcache.bench.kernels_cases import CASES
from kdcache.bench.kernels_inputs import Size

SIZES = Size(rows=40, vocab=601, k=16, hidden=45), Size(rows=9, vocab=5003, k=70, hidden=768)
order, ops = int(sys.argv[1]), sys.argv[2:]
for case in CASES[::order]:
    for dtype, size in itertools.product(case.dtypes, SIZES):
        if case.op in ops or not ops:
            x = case.draw(size, dtype, torch.device("cpu"), False)
            out = case.run(case.ours, case.fresh(case.ours, x))
            digest = hashlib.sha256()
            for tensor in out:
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            print(case.op, case.variant, dtype, size, digest.hexdigest(), sep="|")
"""


def results(cache: Path, ops: list[str], order: int = 1) -> list[str]:
    """A line for every case of the ops, run in a process of its own over a folder of kernels."""
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(order), *ops]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def files(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "ops", [["hidden_mse"], pytest.param([], marks=pytest.mark.slow, id="all")]
)
def test_kernels_from_the_disk_give_the_bits_of_the_process_that_compiled_them(ops, tmp_path):
    compiled = results(tmp_path, ops)
    written = files(tmp_path)
    assert written
    assert compiled
    assert results(tmp_path, ops) == compiled
    if not ops:  # whichever is loaded first
        assert results(tmp_path, ops, order=-1) == compiled
    assert files(tmp_path) == written
