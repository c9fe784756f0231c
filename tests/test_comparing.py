"""What a student lost of its teacher is what both say, document by document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.special import log_softmax

import kdcache
from kdcache.building.builder import build
from kdcache.errors import ConfigError, CorpusError, ModelError
from kdcache.evaluation.beside import by_length, of_one_class
from kdcache.store import Cache
from kdcache_cli.main import main
from tests.conftest import bert_config, save_teacher, write_csv
from tests.methods import dense

TASK: Any = "text-classification"
NAMES = ["asyncio", "email", "tkinter"]
SHARES = ("both_right", "lost", "gained", "both_wrong")


def saved(path: Path, tokenizer: Path, seed: int, names: list[str], **more: Any) -> Path:
    """A classifier of one layer with random weights."""
    torch.manual_seed(seed)
    label2id = {name: i for i, name in enumerate(names)}
    config = bert_config(
        tokenizer,
        num_hidden_layers=1,
        initializer_range=0.3,
        id2label=dict(enumerate(names)),
        label2id=label2id,
        **more,
    )
    return save_teacher(path, tokenizer, transformers.BertForSequenceClassification(config))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return saved(tmp_path_factory.mktemp("student") / "student", tokenizer, 11, NAMES)


@torch.no_grad()
def forward(model: Path, texts: list[str], max_length: int = 48) -> Any:
    """Logits of texts, one by one, by transformers alone; float64 [texts, outputs]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    rows = [
        loaded(**tokenizer(t, truncation=True, max_length=max_length, return_tensors="pt")).logits
        for t in texts
    ]
    return torch.cat(rows).double().numpy()


def by_hand(mine: Any, theirs: Any, labels: Any) -> dict[str, float]:
    """The shares of documents of one class each."""
    right, known = mine.argmax(1) == labels, theirs.argmax(1) == labels
    p, q = log_softmax(theirs, axis=1), log_softmax(mine, axis=1)
    return {
        "documents": len(labels),
        "agreement": (mine.argmax(1) == theirs.argmax(1)).mean(),
        "both_right": (right & known).mean(),
        "lost": (known & ~right).mean(),
        "gained": (right & ~known).mean(),
        "both_wrong": (~right & ~known).mean(),
        "divergence": (np.exp(p) * (p - q)).sum(1).mean(),
    }


def shares(row: Any, wanted: dict[str, float]) -> None:
    assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_a_cache_tells_of_its_documents_what_both_models_say(
    student: Path, classifier: Path, cache: Cache, sentences: list[Any]
) -> None:
    found = kdcache.compare(student, cache=cache)
    texts = [s.text for s in sentences]
    mine, theirs = forward(student, texts), forward(classifier, texts)
    labels = np.array([NAMES.index(s.package) for s in sentences])
    shares(found, by_hand(mine, theirs, labels))
    assert sum(found[name] for name in SHARES) == pytest.approx(1)
    assert min(found[name] for name in SHARES) > 0
    assert [row["class"] for row in found["classes"]] == NAMES
    for i, row in enumerate(found["classes"]):
        own = labels == i
        shares(row, by_hand(mine[own], theirs[own], labels[own]))
    wanted = np.zeros((3, 3), int)
    np.add.at(wanted, (theirs.argmax(1), mine.argmax(1)), 1)
    assert found["confusion"] == wanted.tolist()
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    tokens = np.array([min(48, len(tokenizer(text)["input_ids"])) for text in texts])
    held = 0
    for row in found["lengths"]:
        low, high = row["tokens"]
        own = (low <= tokens) & (tokens <= high)
        shares(row, by_hand(mine[own], theirs[own], labels[own]))
        held += row["documents"]
    assert held == len(texts)
    assert len(found["lengths"]) > 1


def test_a_file_with_both_models_says_what_its_cache_says(
    student: Path, classifier: Path, cache: Cache, corpus: Path, tmp_path: Path
) -> None:
    lines = corpus.read_text("utf-8")
    (tmp_path / "more.csv").write_text(f"{lines}Nobody wrote this before.,email\nNor this.,\n")
    run = kdcache.compare(student, tmp_path / "more.csv", teacher=classifier, max_length=48)
    read = kdcache.compare(student, tmp_path / "more.csv", cache=cache.path, max_length=48)
    assert run["left_out"] == {"unlabelled": 1, "not_in_cache": 0}
    assert read["left_out"] == {"unlabelled": 0, "not_in_cache": 2}
    assert run["documents"] == read["documents"] + 1 == 241
    own = kdcache.compare(student, cache=cache.path)
    shares(read, {name: own[name] for name in ("documents", *SHARES, "divergence")})
    for ours, theirs in zip(read["lengths"], own["lengths"], strict=True):
        assert ours["tokens"] == theirs["tokens"]
        shares(ours, {name: theirs[name] for name in ("documents", *SHARES, "divergence")})
    same = kdcache.compare(student, corpus, teacher=classifier, max_length=48, bins=2)
    assert same["confusion"] == own["confusion"]
    assert len(same["lengths"]) == 2


def test_of_several_classes_a_document_is_right_in_all_and_each_class_by_itself(
    tmp_path: Path, tokenizer: Path, sentences: list[Any]
) -> None:
    kind = {"problem_type": "multi_label_classification"}
    teacher = saved(tmp_path / "teacher", tokenizer, 5, NAMES, **kind)
    other = saved(tmp_path / "student", tokenizer, 6, NAMES, **kind)
    texts = [s.text for s in sentences[:60]]
    mine, theirs = forward(other, texts) > 0, forward(teacher, texts) > 0
    labels = np.array(
        [t if i % 2 else m for i, (m, t) in enumerate(zip(mine, theirs, strict=True))]
    )
    labels[::5, 0] ^= True
    rows = [
        {"text": text, "labels": [n for n, one in zip(NAMES, label, strict=True) if one]}
        for text, label in zip(texts, labels, strict=True)
    ]
    file = tmp_path / "sets.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    cache = build(file, teacher=teacher, task=TASK, out=tmp_path / "cache", max_length=48)
    found = kdcache.compare(other, cache=cache)
    right, known = (mine == labels).all(1), (theirs == labels).all(1)
    assert found["agreement"] == pytest.approx((mine == theirs).all(1).mean())
    assert found["lost"] == pytest.approx((known & ~right).mean())
    assert found["gained"] == pytest.approx((right & ~known).mean())
    assert 0 < found["lost"] < 1
    assert "confusion" not in found
    for i, row in enumerate(found["classes"]):
        right, known = mine[:, i] == labels[:, i], theirs[:, i] == labels[:, i]
        assert row["lost"] == pytest.approx((known & ~right).mean())
        assert row["both_wrong"] == pytest.approx((~known & ~right).mean())
        assert row["having_it"] == labels[:, i].sum()
    total = sum(row["divergence"] for row in found["classes"])
    assert total == pytest.approx(found["divergence"])


def test_models_whose_classes_have_other_names_are_refused_before_they_are_loaded(
    tmp_path: Path, tokenizer: Path, classifier: Path, cache: Cache, corpus: Path
) -> None:
    other = saved(tmp_path / "other", tokenizer, 3, ["asyncio", "mail", "tkinter"])
    (other / "model.safetensors").unlink()
    for sides in ({"cache": cache}, {"file": corpus, "teacher": classifier}):
        with pytest.raises(ModelError, match=r"class 1 of .*other is mail, and of .* email: they"):
            kdcache.compare(other, **sides)


def test_values_and_documents_without_a_label_are_refused(
    tmp_path: Path, regressor: Path, classifier: Path, student: Path
) -> None:
    file = write_csv(tmp_path / "c.csv", [("one text", ""), ("two texts", "")])
    with pytest.raises(ConfigError, match=r"is for classifiers of texts.* `kdcache evaluate"):
        kdcache.compare(regressor, file, teacher=regressor)
    blank = build(file, teacher=classifier, task=TASK, out=tmp_path / "cache", label_column="")
    with pytest.raises(CorpusError, match="none has a label to compare by; name a FILE"):
        kdcache.compare(student, cache=blank)


def test_documents_of_one_length_share_a_row_and_no_row_is_empty() -> None:
    logits = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2, 0]]
    both = of_one_class(logits, dense(logits), torch.tensor([0, 1, 2, 0, 1, 2, 2]))
    rows = by_length(both, np.array([5, 5, 5, 5, 5, 9, 7]), 4)
    told = [(row["tokens"], row["documents"], row["both_wrong"]) for row in rows]
    assert told == [([5, 5], 5, 0), ([7, 7], 1, 1), ([9, 9], 1, 0)]
    assert by_length(both, np.full(7, 5), 9)[0] == {"tokens": [5, 5], **both.shares()}
    assert by_length(both, np.arange(7), 1)[0]["tokens"] == [0, 6]
    assert both.shares(torch.zeros(7, dtype=torch.bool))["lost"] is None


def test_a_person_reads_a_table_and_a_program_json(
    student: Path, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["compare", str(student), "--cache", str(cache.path), "--quiet"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert {"all", *NAMES} <= rows.keys()
    assert " tokens " in out
    assert main([*asked, "--json", "--bins", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["documents"] == 240
    assert f"{told['lost']:.1%}" in rows["all"]
