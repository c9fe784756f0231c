"""Labels that number the classes otherwise than the teacher are noticed, and chance is not."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from kdcache.building.builder import build
from kdcache.corpora.numbering import Numbering, renumber
from kdcache.corpora.standard_library import Docstring
from kdcache.evaluation.evaluator import evaluate
from tests.conftest import Lines, write_csv

TASK: Any = "text-classification"
NAMES = ["asyncio", "email", "tkinter"]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_best_renumbering_is_the_best_of_all(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 203)
    order = np.roll(np.arange(classes), 1)
    predicted = np.where(rng.random(203) < 0.8, order[labels], rng.integers(0, classes, 203))
    orders = map(np.array, itertools.permutations(range(classes)))
    best = max(float(np.mean(found[labels] == predicted)) for found in orders)
    found = renumber(labels, predicted)
    assert found is not None
    assert (found.documents, found.renumbered) == (203, best)
    assert found.agreement == np.mean(labels == predicted)
    assert found.classes == dict(enumerate(order.tolist()))


@pytest.mark.parametrize(
    ("classes", "documents"), [(2, 50), (3, 50), (77, 50), (77, 1000)], ids=str
)
@pytest.mark.parametrize("teacher", ["right", "constant", "random"])
def test_no_word_is_lost_on_labels_that_are_right_or_on_chance(
    classes: int, documents: int, teacher: str
) -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, classes, documents)
    labels[: documents // 2] = 1  # half of the documents are of one class
    guesses = rng.integers(0, classes, documents)
    predicted = {
        "right": np.where(rng.random(documents) < 0.6, labels, guesses),
        "constant": np.zeros(documents, np.int64),
        "random": guesses,
    }[teacher]
    assert renumber(labels, predicted) is None


@pytest.mark.parametrize(("classes", "documents"), [(2, 50), (4, 24), (77, 50), (150, 200)])
def test_mixed_up_classes_are_noticed_among_few_documents(classes: int, documents: int) -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, classes, documents)
    order = np.roll(np.arange(classes), 1)
    predicted = np.where(rng.random(documents) < 0.95, order[labels], 0)
    found = renumber(labels, predicted)
    assert found is not None
    assert found.renumbered > 0.9


def test_documents_without_a_label_do_not_count() -> None:
    numbering = Numbering()
    assert numbering.warning(None) is None
    for _ in range(7):
        numbering.add(np.array([-100, 0, 1, -100, 1, 0, 1]), np.array([0, 1, 0, 1, 0, 1, 0]))
        assert not numbering.enough
    assert "35 documents" in str(numbering.warning(None))
    assert "(0 would be class 1, 1 would be class 0)" in str(numbering.warning(["no"] * 0))
    assert "(no would be class 1, yes would be class 0)" in str(numbering.warning(["no", "yes"]))


@pytest.fixture(scope="module")
def predicted(classifier: Path, sentences: list[Docstring]) -> list[tuple[str, int]]:
    """Texts, and what the teacher takes them for."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    found = []
    for text in (sentence.text for sentence in sentences[:120]):
        with torch.no_grad():
            logits = model(**tokenizer(text, truncation=True, max_length=48, return_tensors="pt"))
        found.append((text, int(logits.logits.argmax())))
    assert len({label for _, label in found}) > 1
    return found


@pytest.mark.parametrize("turn", [0, 1])
def test_build_and_evaluate_warn_once_of_classes_that_are_mixed_up(
    tmp_path: Path, classifier: Path, predicted: list[tuple[str, int]], turn: int
) -> None:
    rows: list[tuple[object, ...]] = [
        (text, NAMES[(label + turn) % 3]) for text, label in predicted
    ]
    path = write_csv(tmp_path / "c.csv", rows)
    built, evaluated = Lines(), Lines()
    sizes: Any = {"part_tokens": 1024, "max_length": 48}
    options: Any = {"teacher": classifier, "task": TASK, "progress": built, **sizes}
    made = build(path, out=tmp_path / "cache", signals=["hidden:layers=1,positions=cls"], **options)
    assert made.plan.parts > 2
    evaluate(classifier, path, max_length=48, progress=evaluated)
    for lines in (built, evaluated):
        warnings = [line for line in lines.messages if line.startswith("warning: ")]
        assert len(warnings) == turn
        for line in warnings:
            assert re.search(r"label of 0.0% of \d+ documents, but of 100.0% if", line)
            assert "\n" not in line


def test_a_corpus_of_a_few_labels_is_compared_at_the_end(
    tmp_path: Path, classifier: Path, predicted: list[tuple[str, int]]
) -> None:
    rows: list[tuple[object, ...]] = [(t, NAMES[(label + 1) % 3]) for t, label in predicted[:40]]
    path, lines = write_csv(tmp_path / "c.csv", rows), Lines()
    build(path, teacher=classifier, task=TASK, out=tmp_path / "cache", progress=lines)
    assert sum(line.startswith("warning: ") for line in lines.messages) == 1
