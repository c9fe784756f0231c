"""The pieces of teaching: splits, class weights, starts, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight

from kdcache.errors import ConfigError, CorpusError, ModelError
from kdcache.labels import LabelReader, resolve
from kdcache.labels.classes import CLASSES
from kdcache.labels.values import VALUES
from kdcache.models import load_tokenizer
from kdcache.models.auto import auto_class
from kdcache.plans.batch import collate
from kdcache.store import Cache
from kdcache.teaching import teach
from kdcache.teaching.data import Documents, read_data
from kdcache.teaching.scores import merit, score, step_loss
from kdcache.teaching.settings import Settings
from kdcache.teaching.split import dev_rows, sample
from kdcache.teaching.start import _refit, features, find_parts
from kdcache.teaching.weights import HEAVIEST, class_weights
from tests.conftest import Lines, write_csv
from tests.teaching.conftest import QUICK


@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_has_every_class_on_both_sides_and_no_text_on_both(seed: int) -> None:
    rng = np.random.default_rng(5)
    texts = rng.integers(0, 300, 1003)
    classes = texts % 7  # a text has one class
    aside = dev_rows(texts, classes, 0.1, seed)
    assert not set(texts[aside]) & set(texts[~aside])
    assert set(classes[aside]) == set(classes[~aside]) == set(range(7))
    assert 0.07 < len(set(texts[aside])) / len(set(texts)) < 0.13
    assert (aside == dev_rows(texts, classes, 0.1, seed)).all()
    assert (aside != dev_rows(texts, classes, 0.1, seed + 1)).any()


def test_a_class_of_one_text_is_learnt_from_and_one_of_two_is_on_both_sides() -> None:
    texts, classes = np.array([0, 0, 1, 2, 3, 3]), np.array([0, 0, 1, 1, 2, 2])
    aside = dev_rows(texts, classes, 0.9, 0)
    assert aside.tolist()[:2] == aside.tolist()[4:] == [False, False]
    assert aside[2:4].sum() == 1


def test_a_sample_keeps_the_shares_of_classes() -> None:
    classes = np.repeat([0, 1], [9000, 1000])
    rows = sample(classes, 500, 0)
    assert np.bincount(classes[rows]).tolist() == [450, 50]
    assert sample(classes[:400], 500, 0).tolist() == list(range(400))


def test_class_weights_are_scikit_learns_up_to_a_limit() -> None:
    counts = np.array([30, 10, 50])
    labels = np.repeat(np.arange(3), counts)
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = class_weights(counts, "auto")
    assert found is not None
    assert np.allclose(found, wanted)
    assert class_weights(counts, "none") is None
    assert class_weights(np.array([20, 10, 29]), "auto") is None
    assert class_weights(np.array([20, 10, 29]), "balanced") is not None
    rare = class_weights(np.array([9000, 0, 3]), "auto")
    assert rare is not None
    assert (rare.max(), rare[1]) == (HEAVIEST, 1.0)


def test_a_step_lowers_the_weighted_mean_and_errors_in_units_of_the_labels() -> None:
    rng = np.random.default_rng(0)
    logits, labels, weights = (
        rng.normal(size=(7, 3)),
        rng.integers(0, 3, 7),
        np.array([1.0, 4, 0.5]),
    )
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]
    wanted = (weights[labels] * nats).sum() / weights[labels].sum()
    tensors = [torch.tensor(x) for x in (logits, labels, weights)]
    found = step_loss(CLASSES, tensors[0], tensors[1], tensors[2].float(), None)
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    values, targets = rng.normal(size=(7, 1)) * 40, rng.normal(size=7).astype(np.float32) * 40
    error = step_loss(
        VALUES, torch.tensor(values), torch.tensor(targets), None, torch.tensor(1600.0)
    )
    assert float(error) == pytest.approx(((values[:, 0] - targets) ** 2).mean() / 1600, rel=1e-5)


@pytest.fixture(scope="module")
def documents(cache: Cache) -> Documents:
    return Documents(cache.plan, cache.plan.labelled_docs)


def test_scores_are_scikit_learns_and_their_interval_holds_them(documents: Documents) -> None:
    outputs = np.random.default_rng(1).normal(size=(len(documents), 3)).astype(np.float32)
    outputs[np.arange(len(documents)), documents.classes] += 1.0
    found = score(outputs, documents)
    assert found is not None
    wanted = f1_score(documents.classes, outputs.argmax(1), average="macro")
    assert found["macro_f1"] == pytest.approx(wanted)
    low, high = found["macro_f1_interval"]
    assert wanted - 0.1 < low < wanted < high < wanted + 0.1
    right = outputs.argmax(1)[documents.classes == 1] == 1
    assert found["recall"]["email"] == pytest.approx(right.mean())
    outputs[3, 1] = np.nan
    assert score(outputs, documents) is None
    assert merit(None, "accuracy") < merit(found, "accuracy")


def test_a_refitted_pooler_gives_the_mean_over_tokens(
    classifier: Path, documents: Documents
) -> None:
    model = auto_class("text-classification").from_pretrained(classifier).eval()
    plan, docs = documents.plan, documents.docs
    parts = find_parts(model, collate(plan, docs[:3], {}))
    assert parts is not None
    assert parts.pooler is model.bert.pooler.dense
    assert parts.head is model.classifier
    seen = features(model, parts, documents, lambda done: None)
    batch = collate(plan, docs[:5], {})
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        states = model.bert(**inputs).last_hidden_state.double().numpy()
    for row, (states_of, mask) in enumerate(zip(states, batch.mask.numpy(), strict=True)):
        assert np.abs(seen.mean[row] - states_of[mask].mean(0)).max() < 1e-5
        assert np.abs(seen.pooler[row] - states_of[0]).max() < 1e-5  # type: ignore[index]
    pooler = _refit([seen])
    unit = seen.mean / np.linalg.norm(seen.mean, axis=1, keepdims=True)
    own, refitted = (
        float((values * unit).sum(1).mean() / np.linalg.norm(values, axis=1).mean())
        for values in (seen.head, np.tanh(pooler(seen.pooler)))  # type: ignore[arg-type]
    )
    assert refitted > 0.9
    assert refitted > own + 0.1


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["5", "1", "3"], ["1", "3", "5"], [2, 0, 1]),
        (["10", "9"], ["9", "10"], [1, 0]),
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        (["1", "0"], ["0", "1"], [1, 0]),
    ],
)
def test_new_classes_are_those_that_documents_have(
    labels: list[str], names: list[str], ids: list[int]
) -> None:
    reader = LabelReader()
    for number, label in enumerate(labels):
        reader.add(label, f"x.csv:{number + 2}")
    found = resolve(reader, new=True)
    assert (found.classes, found.rows.tolist()) == (names, ids)
    assert "the teacher" not in " ".join(found.notes)


def _read(train: Path, dev: Path | None, classifier: Path, scratch: Path, progress: Lines) -> Any:
    scratch.mkdir()
    return read_data(train, dev, load_tokenizer(classifier), Settings(), scratch, {}, progress)


def test_a_text_that_is_chosen_on_is_not_learnt_from(classifier: Path, tmp_path: Path) -> None:
    rows = [(f"text {'a' * i}", "xy"[i % 2]) for i in range(20)]
    train = write_csv(tmp_path / "train.csv", [*rows, *rows[:4], ("a text without", "")])
    dev = write_csv(tmp_path / "dev.csv", [*rows[:2], ("another text", "y")])
    progress = Lines()
    data = _read(train, dev, classifier, tmp_path / "a", progress)
    assert (len(data.train), len(data.dev), len(data.unlabelled)) == (20, 3, 1)
    assert "4 of 24 labelled documents are left out" in " ".join(progress.messages)
    data = _read(train, None, classifier, tmp_path / "b", progress)
    assert set(data.train.texts()).isdisjoint(data.dev.texts())
    assert len(data.train) + len(data.dev) == 24


def test_classes_with_few_documents_are_told(classifier: Path, tmp_path: Path) -> None:
    rows = [(f"text {'a' * i}", "xy"[i % 2]) for i in range(20)] + [("alone", "z")]
    progress = Lines()
    data = _read(write_csv(tmp_path / "t.csv", rows), None, classifier, tmp_path / "a", progress)
    told = " ".join(progress.messages)
    assert "a single document to learn from: z" in told
    assert "no document to choose on, so the scores do not tell of them: z" in told
    assert data.dev.counts().tolist() == [1, 1, 0]


def test_an_encoder_without_its_weights_or_without_a_classifier_is_refused(
    tokenizer: Path, labelled: Path, tmp_path: Path
) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 600}
    models = {
        "half": transformers.GPT2Model(transformers.GPT2Config(**sizes)),
        "vision": transformers.ViTConfig(),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        for file in tokenizer.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    config = transformers.AutoConfig.from_pretrained(tmp_path / "half", n_layer=2)
    config.save_pretrained(tmp_path / "half")
    with pytest.raises(ModelError, match="no trained encoder"):
        teach(tmp_path / "half", labelled, out=tmp_path / "out", **QUICK)
    with pytest.raises(ModelError, match="no classifier"):
        teach(tmp_path / "vision", labelled, out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_taught_writes_nothing(
    encoder: Path, labelled: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="a learning rate is named twice"):
        teach(encoder, labelled, out=tmp_path / "out", **QUICK | {"learning_rates": (1.0, 1.0)})
    dev = write_csv(tmp_path / "dev.csv", [("a", ""), ("b", "")])
    with pytest.raises(CorpusError, match="no labels to choose on"):
        teach(encoder, labelled, dev=dev, out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
