"""BERT-EMD from a cache whose layers lie in several signals."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdcache
from tests.test_trainer import log_of

TASK = "text-classification"
SCORES = "scores=attention:layers=1-2-3-4,dtype=fp16"
WHOLE = ["logits:dense", "hidden:layers=0-1-2-3-4,positions=all,dtype=fp32", SCORES]
MIXED = [
    "logits:dense",
    "hidden:layers=0-2-4,positions=all,dtype=fp32",
    "between=hidden:layers=1,positions=all,dtype=int8",
    "grouped=hidden:layers=3,positions=all,dtype=int8,group=16",
    SCORES,
]


@pytest.mark.slow  # it compiles kernels that no other test of the suite runs
def test_layers_may_be_stored_otherwise_than_each_other(
    corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.zarr"
    kdcache.plan(corpus, tokenizer=classifier, task=TASK, out=plan, max_length=24, limit=32)
    losses = []
    for name, signals in (("whole", WHOLE), ("mixed", MIXED)):
        cache = kdcache.build(
            plan, teacher=classifier, task=TASK, out=tmp_path / name, signals=signals,
            keep_teacher_weights=True,
        )  # fmt: skip
        result = kdcache.train(
            cache, recipe="bert-emd", out=tmp_path / f"{name}-student", init_from_teacher=[2, 4],
            overrides=["training.max_steps=1", "training.logging_steps=1"], seed=3,
        )  # fmt: skip
        losses.append(log_of(result.folder)[0]["loss_emd"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
