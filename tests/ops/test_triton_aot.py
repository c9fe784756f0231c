"""Every Triton kernel compiled for three generations of GPUs: registers suffice, loads are wide."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VOCABULARIES = (30522, 32000, 50257, 128256, 151936)


@pytest.fixture(scope="module")
def rows():
    """What benchmarks/kernel_resources.py finds, in a process that does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_resources.py"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["kernels"]


def named(rows, start):
    found = [row for row in rows if row["name"].startswith(start)]
    assert {row["target"] for row in found} == {80, 90, 100}
    return found


def widest(row, what):
    return row[what].get("128", 0)


def test_no_kernel_spills(rows):
    assert len(rows) > 30
    spilling = [row for row in rows if row["stack_bytes"] or row["spills"]]
    assert spilling == []


@pytest.mark.parametrize("v", VOCABULARIES)
def test_logits_of_any_vocabulary_move_128_bits_at_a_time(rows, v):
    for row in named(rows, f"topk_kl V={v} "):
        assert widest(row, "loads") >= 4
        assert widest(row, "stores") >= 4
        # The rest is the support, the label and the edges, not the row.
        assert sum(n for width, n in row["stores"].items() if width != "128") <= 10


@pytest.mark.parametrize("op", ["hidden_mse", "quantize_rows", "topk_encode"])
def test_short_rows_move_128_bits_at_a_time(rows, op):
    for row in named(rows, op):
        assert widest(row, "loads") >= 2
        narrow = {width for width, n in row["loads"].items() if width != "128" and n > 2}
        assert narrow == set()


def test_rows_of_both_heads_move_128_bits_at_a_time(rows):
    for row in named(rows, "linear_kl"):
        assert widest(row, "loads") >= 8
        assert widest(row, "stores") >= 2
        assert sum(n for width, n in row["loads"].items() if width != "128") <= 3
        assert sum(n for width, n in row["stores"].items() if width != "128") <= 6


def test_a_row_of_bert_is_held_by_one_block_and_read_once(rows):
    for row in named(rows, "topk_kl V=30522 bf16"):
        assert row["num_ctas"] == 1
        assert row["registers"] <= 128
        # 32768 elements of two bytes, by 512 threads of 16 bytes.
        assert widest(row, "loads") - (row["name"].endswith("K=1024")) == 8
