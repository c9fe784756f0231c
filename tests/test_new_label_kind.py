"""A kind of label from outside is a line in LABEL_KINDS: from teacher to student and reports."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcache
from kdcache.evaluation.evaluator import evaluate
from kdcache.labels import LABEL_KINDS, LabelKind, Labels
from kdcache.labels.base import Teaching, Told
from kdcache.labels.class_labels import read_classes
from kdcache.labels.classes import CLASSES
from kdcache.labels.values import VALUES
from kdcache.maintenance.outdated import FAULTS, outdated
from tests.conftest import write_csv
from tests.damage import copy_of
from tests.test_outdated import age

DOCS, DEV = 32, 8


def _read(reader: Any, given: Any) -> Labels:
    """Ranks: whole numbers, 0 or more."""
    table = np.array([*map(float, reader.names), np.nan], np.float32)
    return Labels("rank", None, table[reader.codes])


def _rows(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    known = labels.isfinite()
    return torch.where(known, outputs.squeeze(-1) - labels, 0.0).abs()


def _kappa(outputs: Any, labels: Any, names: Any) -> dict[str, float]:
    from sklearn.metrics import cohen_kappa_score

    return {"kappa": float(cohen_kappa_score(labels, outputs.argmax(1), weights="quadratic"))}


@dataclass
class Example:
    """A kind, and what is told of it."""

    kind: LabelKind
    recipe: str
    card: str
    columns: tuple[str, ...]
    faults: list[str]


RANK = replace(
    VALUES,
    name="rank",
    label_type="rank",
    called="ranker",
    means=lambda problem_type, outputs: outputs == 1,
    guess=lambda reader: True,
    read=_read,
    hard_rows=_rows,
    scores=lambda outputs, labels, names: {"mse": float(np.abs(outputs[:, 0] - labels).mean())},
    metric=lambda labels: "mse",
    predictions=lambda outputs, labels, names: Told(
        ("rank",), [(round(v),) for v in outputs[:, 0]]
    ),
)
GRADE = replace(
    CLASSES,
    name="grade",
    label_type="grade",
    called="grader",
    means=lambda problem_type, outputs: outputs > 1,
    read=lambda reader, given: replace(read_classes(reader, given), kind="grade"),
    scores=_kappa,
    metric=lambda labels: "kappa",
    headline="kappa",
    teaching=Teaching(by="kappa", strata=lambda labels: labels.astype(np.int64)),
)
EXAMPLES = {
    "rank": Example(RANK, "finetune", "| values | one value (rank) |", ("rank",), [[*FAULTS][-1]]),
    "grade": Example(
        GRADE,
        "kd",
        "| classes | 0, 1, 2, 3 |",
        ("label", "prediction", "confidence", *(f"probability: {grade}" for grade in range(4))),
        [],
    ),
}


@pytest.fixture(params=EXAMPLES)
def listed(request: pytest.FixtureRequest) -> Iterator[Example]:
    """A kind at the head of the table: the first that a teacher can mean is taken."""
    before = dict(LABEL_KINDS)
    LABEL_KINDS.clear()
    LABEL_KINDS.update({request.param: EXAMPLES[request.param].kind, **before})
    yield EXAMPLES[request.param]
    LABEL_KINDS.clear()
    LABEL_KINDS.update(before)


def test_a_kind_of_label_is_one_line(listed: Example, masked_lm: Path, tmp_path: Path) -> None:
    """One document has no label, and the teacher's score on dev is told by the cache alone."""
    kind, by = listed.kind, listed.kind.metric(np.zeros(1)) if listed.kind.metric else ""
    rows: list[tuple[str, Any]] = [(f"the text number {i}", i % 4) for i in range(DOCS - 1)]
    rows.append(("a text without a label", ""))
    corpus = write_csv(tmp_path / "corpus.csv", rows)
    dev = write_csv(tmp_path / "dev.csv", rows[:DEV])
    taught = kdcache.teach(
        masked_lm, corpus, out=tmp_path / "teacher", dev=dev, epochs=1, learning_rates=1e-3,
        max_length=16, device="cpu",
    )  # fmt: skip
    assert (taught.metrics["problem"], taught.metrics["chosen_by"]) == (kind.name, by)
    assert listed.card in (taught.folder / "README.md").read_text("utf-8")
    cache = kdcache.build(
        corpus,
        teacher=taught.folder,
        task="text-classification",
        out=tmp_path / "c.zarr",
        max_length=16,
    )
    assert (cache.plan.config.label_kind, cache.plan.labelled) == (kind.name, DOCS - 1)
    trained = kdcache.train(
        cache,
        recipe=listed.recipe,
        out=tmp_path / "student",
        init_from_teacher=[1],
        epochs=1,
        batch_size=8,
        dev=dev,
        device="cpu",
    )
    told = trained.metrics["dev"]
    assert told["metric"] == by
    assert told["higher_is_better"] == (by == "kappa")
    assert told["teacher"]["source"] == "the cache's soft labels"
    assert told["teacher"]["value"] == pytest.approx(evaluate(taught.folder, dev)[by], abs=1e-4)
    report = evaluate(
        trained.folder, corpus, cache=cache, predictions=tmp_path / "said.csv", device="cpu"
    )
    assert np.isfinite(report[by])
    assert report["teacher_rows"]["divergence"] is not None
    with (tmp_path / "said.csv").open(encoding="utf-8") as file:
        assert tuple(next(csv.reader(file))) == ("document", "text", *listed.columns)
    kdcache.export(cache, tmp_path / "files")
    assert (tmp_path / "files" / "part-000000.safetensors").is_file()
    assert kdcache.verify(cache.path) == []
    old = copy_of(cache, tmp_path / "old")
    age(old)
    assert outdated(old) == [f"{old}: {fault}; build it anew" for fault in listed.faults]
    assert json.loads((taught.folder / "metrics.json").read_text("utf-8"))["problem"] == kind.name
