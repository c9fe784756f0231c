"""A kind of label from outside is a line in LABEL_KINDS: from plan to student and report."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcache
from kdcache.evaluation.evaluator import evaluate
from kdcache.labels import LABEL_KINDS, Labels
from kdcache.labels.base import Told
from kdcache.labels.values import VALUES
from tests.conftest import write_csv


def _read(reader: Any, given: Any) -> Labels:
    """Ranks: whole numbers, 0 or more."""
    table = np.array([*map(float, reader.names), np.nan], np.float32)
    return Labels("rank", None, table[reader.codes])


def _rows(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    known = labels.isfinite()
    return torch.where(known, outputs.squeeze(-1) - labels, 0.0).abs()


RANK = replace(
    VALUES,
    name="rank",
    label_type="rank",
    called="ranker",
    means=lambda problem_type, outputs: outputs == 1,
    read=_read,
    hard_rows=_rows,
    scores=lambda outputs, labels, names: {"mse": float(np.abs(outputs[:, 0] - labels).mean())},
    metric=lambda labels: "mse",
    predictions=lambda outputs, labels, names: Told(
        ("rank",), [(round(v),) for v in outputs[:, 0]]
    ),
)


@pytest.fixture
def listed() -> Iterator[None]:
    """The kind at the head of the table: the first that a teacher can mean is taken."""
    before = dict(LABEL_KINDS)
    LABEL_KINDS.clear()
    LABEL_KINDS.update({"rank": RANK, **before})
    yield
    LABEL_KINDS.clear()
    LABEL_KINDS.update(before)


@pytest.mark.usefixtures("listed")
def test_a_kind_of_label_is_one_line(regressor: Path, tmp_path: Path) -> None:
    corpus = write_csv(tmp_path / "ranks.csv", [(f"the text number {i}", i % 4) for i in range(24)])
    cache = kdcache.build(
        corpus,
        teacher=regressor,
        task="text-classification",
        out=tmp_path / "c.zarr",
        max_length=16,
    )
    assert (cache.plan.config.label_kind, cache.plan.labelled) == ("rank", 24)
    trained = kdcache.train(
        cache,
        recipe="finetune",
        out=tmp_path / "student",
        init_from_teacher=[1],
        epochs=1,
        batch_size=8,
        dev_split=0.25,
        device="cpu",
    )
    assert trained.metrics["dev"]["metric"] == "mse"
    report = evaluate(
        trained.folder, corpus, cache=cache, predictions=tmp_path / "said.csv", device="cpu"
    )
    assert report["mse"] > 0
    assert report["teacher_rows"]["divergence"] is not None
    with (tmp_path / "said.csv").open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["document", "rank"]
    kdcache.export(cache, tmp_path / "files")
    assert (tmp_path / "files" / "part-000000.safetensors").is_file()
    assert kdcache.verify(cache.path) == []
