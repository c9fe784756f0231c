"""Two ranks train a student by these methods as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import kdcache
from kdcache.store import Cache
from kdcache.training.own_loop import make_student
from tests.test_inputs import alone, both
from tests.test_reworded import cache as reworded
from tests.test_reworded import config, place, teacher, tiny
from tests.test_trainer import log_of

__all__ = ["alone", "both", "config", "place", "reworded", "teacher", "tiny"]  # fixtures

ROOT = Path(__file__).parents[1]
# Not Adam, which makes steps of the rounding where a gradient is none, as that of a key's bias.
SHORT = (
    "training.max_steps=4",
    "training.logging_steps=1",
    "training.learning_rate=0.05",
    "training.optim=sgd",
)
pytestmark = pytest.mark.slow


def still(source: str | Path, out: Path) -> str:
    """A configuration without dropout, of which no two splits of a batch draw the same."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    transformers.AutoConfig.from_pretrained(source, **off).save_pretrained(out)
    return str(out)


def alike(cache: Cache, recipe: str, folder: Path, *words: str) -> None:
    """Train in one process and on two ranks, and hold losses and weights against each other."""
    told = ["train", str(cache.path), "--recipe", recipe, "--device", "cpu", "--quiet", *words]
    told += [word for one in SHORT for word in ("--set", one)]
    command = [sys.executable, "-m", "kdcache_cli"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ranks = [sys.executable, "-m", *launcher, "-m", "kdcache_cli"]
    paths = os.pathsep.join(str(ROOT / where) for where in (".", "kernels", "cli"))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, start, size in (("one", command, "16"), ("two", ranks, "8")):
        ended = subprocess.run(
            [*start, *told, "--batch-size", size, "--out", str(folder / name)],
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
    first, second = (
        [{k: v for k, v in entry.items() if k.startswith("loss")} for entry in log_of(folder / n)]
        for n in ("one", "two")
    )
    assert len(first) == len(second) == 4
    for mine, theirs in zip(first, second, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    found = load_file(folder / "two" / "model.safetensors")
    for name, weight in load_file(folder / "one" / "model.safetensors").items():
        assert torch.allclose(found[name], weight, atol=1e-5), name


def test_documents_that_a_policy_keeps(cache: Cache, classifier: Path, tmp_path: Path) -> None:
    dev = ("--dev-split", "25%", "--dev-every", "2")
    alike(cache, "l2a", tmp_path, "--config", still(classifier, tmp_path / "c"), *dev)


def test_smoothed_inputs(both: Cache, classifier: Path, tmp_path: Path) -> None:
    alike(both, "text-smoothing", tmp_path, "--config", still(classifier, tmp_path / "c"))


def test_words_of_two_vocabularies(
    reworded: Cache, config: str, tiny: Path, tmp_path: Path
) -> None:
    given = ("--config", still(config, tmp_path / "c"), "--set", f"student.tokenizer={tiny}")
    alike(reworded, "mixed-vocab", tmp_path, *given)


def test_texts_and_points(cache: Cache, classifier: Path, tmp_path: Path) -> None:
    points: Any = kdcache.ascend(cache, teacher=classifier, out=tmp_path / "points.zarr")
    kdcache.merge([cache.path, points.path], tmp_path / "merged.zarr")
    student = make_student(cache, init_from_teacher=[1, 3])
    student.save_pretrained(tmp_path / "s")
    transformers.AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path / "s")
    still(tmp_path / "s", tmp_path / "s")
    merged = kdcache.open_cache(tmp_path / "merged.zarr")
    alike(merged, "bss", tmp_path, "--student", str(tmp_path / "s"))
