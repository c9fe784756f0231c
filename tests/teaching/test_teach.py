"""Teach: labels and an encoder are enough for a teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from transformers import pipeline

from kdcache import build, evaluate
from kdcache.corpora.standard_library import Docstring
from kdcache.demo.encoder import encoder_folder
from kdcache.errors import ConfigError, MismatchError, ModelError
from kdcache.models.classifier_outputs import classes_of
from kdcache.tasks import TASKS
from kdcache.teaching import TeachResult, teach
from kdcache.teaching.card import write_card
from tests.conftest import Lines, exchange_tokens, save_teacher, write_csv
from tests.teaching.conftest import QUICK

WEIGHTS = "model.safetensors"


def test_a_taught_teacher_is_a_teacher_to_every_command(
    taught: TeachResult, labelled: Path, tmp_path: Path
) -> None:
    words: Any = Lines()
    options: Any = {"task": "text-classification", "teacher": taught.folder, "progress": words}
    build(labelled, out=tmp_path / "cut", max_length=32, **options)
    assert not any("was trained on" in line for line in words.messages)
    cache = build(labelled, out=tmp_path / "cache", **options)
    assert sum("up to 32 tokens, and these have up to" in line for line in words.messages) == 1
    assert cache.manifest["teacher"]["classes"] == ["asyncio", "email", "tkinter"]
    scores = evaluate(taught.folder, labelled)  # cut off where it was in teaching
    assert scores["accuracy"] == taught.metrics["evaluation"]["accuracy"]
    pipe = pipeline("text-classification", model=str(taught.folder), device="cpu")
    assert pipe("the event loop", truncation=True)[0]["label"] in ("asyncio", "email", "tkinter")
    assert pipe.tokenizer.model_max_length == 32
    config = json.loads((taught.folder / "config.json").read_text("utf-8"))
    assert config["problem_type"] == "single_label_classification"


def test_the_folder_holds_a_model_its_card_and_figures_and_nothing_of_the_run(
    taught: TeachResult, labelled: Path, tmp_path: Path
) -> None:
    names = {path.name for path in taught.folder.iterdir()}
    assert names >= {WEIGHTS, "config.json", "tokenizer.json", "README.md", "metrics.json"}
    assert "checkpoints" not in names
    assert not any(str(labelled.parent).encode() in p.read_bytes() for p in taught.folder.iterdir())
    metrics = json.loads((taught.folder / "metrics.json").read_text("utf-8"))
    card = ModelCard.load(taught.folder / "README.md").text
    for told in (metrics["data"]["sha256"], metrics["encoder"]["weights_sha256"], "162 labelled"):
        assert told in card
    write_card(tmp_path, {**metrics, "settings": {**metrics["settings"], "dev_split": 0.125}})
    assert "12.5% set aside of the corpus" in (tmp_path / "README.md").read_text("utf-8")
    assert metrics["data"] == taught.metrics["data"]
    assert (metrics["data"]["train"], metrics["data"]["dev"]) == (162, 18)


def test_what_is_chosen_is_the_best_of_all_that_was_scored(taught: TeachResult) -> None:
    metrics = taught.metrics
    tried = {(None, 0): metrics["start"]["scores"]}
    for point in metrics["grid"]:
        for epoch in point["epochs"]:
            tried[point["learning_rate"], epoch["epoch"]] = epoch["dev"]
    assert len(tried) == 1 + 2 * 2
    best = max(s["accuracy"] for s in tried.values())
    chosen = tried[metrics["chosen"]["learning_rate"], metrics["chosen"]["epoch"]]
    assert chosen["accuracy"] == best == metrics["dev"]["accuracy"]
    low, high = metrics["dev"]["accuracy_interval"]
    assert low < best < high


def test_documents_of_an_evaluation_that_were_taught_on_are_told(
    taught: TeachResult, encoder: Path, labelled: Path, sentences: list[Docstring], tmp_path: Path
) -> None:
    assert taught.metrics["evaluation"]["seen"] == 180  # the same file
    card = (taught.folder / "README.md").read_text("utf-8")
    assert "180 documents of the other file were taught or chosen on" in card
    rows = [(s.text, s.package) for i, s in enumerate(sentences) if i % 4 == 3]
    mixed = write_csv(tmp_path / "mixed.csv", [*rows, (sentences[0].text, sentences[0].package)])
    words, out = Lines(), tmp_path / "teacher"
    options = {**QUICK, "epochs": 1, "learning_rates": 1e-3, "progress": words}
    found = teach(encoder, labelled, out=out, eval_file=mixed, **options)
    assert found.metrics["evaluation"]["seen"] == 1
    assert sum("1 of the 61 documents of mixed.csv (--eval)" in s for s in words.messages) == 1


def test_a_teacher_with_another_tokenizer_is_not_scored(
    taught: TeachResult, labelled: Path, tmp_path: Path
) -> None:
    changed = exchange_tokens(shutil.copytree(taught.folder, tmp_path / "changed"))
    with pytest.raises(ModelError, match=r"numbers other tokens .*taught\.json"):
        evaluate(changed, labelled)


class _Stopped(Lines):
    """A progress that is interrupted when the second learning rate begins."""

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Any]:
        if "2 of 2" in label:
            raise KeyboardInterrupt
        yield lambda done: None


def test_a_run_that_was_stopped_goes_on_and_ends_in_the_same_bytes(
    encoder: Path, labelled: Path, taught: TeachResult, tmp_path: Path
) -> None:
    out = tmp_path / "teacher"
    stopped = _Stopped()
    with pytest.raises(KeyboardInterrupt):
        teach(encoder, labelled, out=out, **{**QUICK, "progress": stopped})
    assert not (out / "metrics.json").exists()
    assert "the same command goes on after 1 of 2 learning rates" in stopped.messages[-1]
    with pytest.raises(MismatchError, match="seed is 0 there and 1 now"):
        teach(encoder, labelled, out=out, **QUICK, seed=1)
    lines = Lines()
    result = teach(encoder, labelled, out=out, **{**QUICK, "progress": lines})
    assert any("1 of 2 learning rates are finished" in line for line in lines.messages)
    assert (out / WEIGHTS).read_bytes() == (taught.folder / WEIGHTS).read_bytes()
    assert result.metrics["grid"] == taught.metrics["grid"]
    with pytest.raises(ConfigError, match="already holds a trained model"):
        teach(encoder, labelled, out=out, **QUICK)


def _reviews(count: int, seed: int, share: float = 0.5) -> list[tuple[str, str]]:
    """Sentences whose words tell their class, most of the time."""
    rng = np.random.default_rng(seed)
    words = {"bad": ["error", "not", "raise"], "good": ["return", "value", "list"]}
    both = [*words["bad"], *words["good"]]
    rows = []
    for number in range(count):
        label = "bad" if number < share * count else "good"
        text = rng.permutation([*words[label], *rng.choice(["the", "of", "object", "file"], 4)])
        rows.append((" ".join([*text, *rng.choice(both, 2)]), label))
    return rows


@pytest.mark.slow
def test_a_learning_rate_that_ruins_a_run_is_not_chosen(encoder: Path, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", _reviews(160, 0))
    dev = write_csv(tmp_path / "dev.csv", _reviews(64, 1))
    options = {**QUICK, "learning_rates": (30.0, 2e-3), "epochs": 3}
    metrics = teach(encoder, train, dev=dev, out=tmp_path / "teacher", **options).metrics
    ruined, good = ([e["dev"] for e in point["epochs"]] for point in metrics["grid"])
    assert metrics["chosen"]["learning_rate"] != 30.0
    sound = [s["accuracy"] for s in (*good, metrics["start"]["scores"])]
    assert metrics["dev"]["accuracy"] == max(sound)
    assert all(s is None or s["accuracy"] < max(sound) for s in ruined)
    assert metrics["data"]["dev_file"] == "dev.csv"


def test_class_weights_raise_recall_of_the_rare_class(encoder: Path, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", _reviews(200, 0, share=0.05))
    dev = write_csv(tmp_path / "dev.csv", _reviews(200, 1, share=0.05))
    scores, words = {}, {}
    for rule in ("auto", "none"):
        lines = Lines()
        options = {**QUICK, "learning_rates": 5e-4, "epochs": 1, "progress": lines}
        made = teach(encoder, train, dev=dev, out=tmp_path / rule, class_weights=rule, **options)
        scores[rule], words[rule] = made.metrics["dev"], " ".join(lines.messages)
        assert (made.metrics["class_weights"] is None) == (rule == "none")
    assert scores["auto"]["recall"]["bad"] > scores["none"]["recall"]["bad"]
    assert scores["auto"]["macro_f1"] > scores["none"]["macro_f1"]
    assert "10 to 190 documents" in words["auto"]
    assert "--class-weights none" in words["auto"]
    assert "weighed" not in words["none"]


def test_labels_that_are_values_make_a_regression(encoder: Path, tmp_path: Path) -> None:
    good = ("return", "value", "list")
    rows = [(t, 100 + 2.5 * sum(w in good for w in t.split())) for t, _ in _reviews(120, 2)]
    train = write_csv(tmp_path / "train.csv", rows)
    options = {**QUICK, "learning_rates": 1e-3, "epochs": 1}
    metrics = teach(encoder, train, out=tmp_path / "teacher", **options).metrics
    assert metrics["problem"] == "regression"
    assert metrics["chosen_by"] == "mse"
    assert metrics["dev"]["pearson"] > 0.5
    assert classes_of(tmp_path / "teacher", TASKS["text-classification"]).count == 1
    assert evaluate(tmp_path / "teacher", train)["pearson"] > 0.5


def small(family: str, tokenizer: Path) -> transformers.PreTrainedModel:
    """A tiny encoder, or decoder, of a family."""
    vocab = len(transformers.AutoTokenizer.from_pretrained(tokenizer))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    inner = {"intermediate_size": 64, "max_position_embeddings": 130, "vocab_size": vocab}
    if family == "distilbert":
        inner = {"vocab_size": vocab, "hidden_dim": 64}
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4}
    elif family == "gpt2":
        inner = {"vocab_size": vocab, "bos_token_id": 2, "eos_token_id": 3}
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    elif family == "modernbert":
        names = ("bos", "eos", "cls", "sep", "pad")
        inner |= {f"{n}_token_id": i for n, i in zip(names, (2, 3, 2, 3, 0), strict=True)}
    elif family in ("roberta", "mpnet"):
        inner["pad_token_id"] = 0
    torch.manual_seed(6)
    config = transformers.AutoConfig.for_model(family, **sizes, **inner)
    return transformers.AutoModel.from_config(config)


FAMILIES = {
    "distilbert": {"own"},
    "gpt2": {"own"},
    "roberta": {"own", "refitted"},
    "electra": {"own"},
    "modernbert": {"own"},
    "mpnet": {"own", "refitted"},
    "albert": {"own", "refitted"},
    "deberta-v2": {"own"},
}


@pytest.mark.parametrize(
    "family",
    [f if f in ("gpt2", "roberta") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_encoders_of_every_family_are_taught_from_a_fitted_head(
    family: str, tokenizer: Path, tmp_path: Path
) -> None:
    source = save_teacher(tmp_path / "encoder", tokenizer, small(family, tokenizer))
    train = write_csv(tmp_path / "train.csv", _reviews(64, 0))
    options = {**QUICK, "epochs": 1, "learning_rates": 1e-3}
    result = teach(source, train, out=tmp_path / "teacher", **options)
    start = result.metrics["start"]
    assert set(start["dev"]) == FAMILIES[family]
    scored = start["dev"][start["pooler"]]  # the fitted layers say what the model does with them
    assert scored["cross_entropy"] == pytest.approx(start["scores"]["cross_entropy"], abs=1e-4)
    words = evaluate(tmp_path / "teacher", train)
    pipe = pipeline("text-classification", model=str(tmp_path / "teacher"), device="cpu")
    rows = _reviews(64, 0)
    labels = [found["label"] for found in pipe([text for text, _ in rows], batch_size=8)]
    right = np.mean([label == wanted for label, (_, wanted) in zip(labels, rows, strict=True)])
    assert right == pytest.approx(words["accuracy"])


def test_an_encoder_that_was_a_classifier_gets_the_classes_of_the_corpus(
    classifier: Path, tmp_path: Path
) -> None:
    rows = [(text, {"bad": 2, "good": 5}[label]) for text, label in _reviews(48, 0)]
    train = write_csv(tmp_path / "train.csv", rows)
    options = {**QUICK, "epochs": 1, "learning_rates": 1e-3}
    teach(classifier, train, out=tmp_path / "teacher", **options)
    found = classes_of(tmp_path / "teacher", TASKS["text-classification"])
    assert (found.names, found.count) == (["2", "5"], 2)


@pytest.mark.slow
def test_the_embedded_encoder_is_taught_on_a_refitted_pooler(
    sentences: list[Docstring], tmp_path: Path
) -> None:
    rows = [(s.text, s.package) for s in sentences]
    train = write_csv(tmp_path / "train.csv", rows[::2])
    test = write_csv(tmp_path / "test.csv", rows[1::2])
    options = {**QUICK, "epochs": 2, "learning_rates": 1e-4, "dev_split": "20%"}
    source = encoder_folder()
    metrics = teach(source, train, out=tmp_path / "t", eval_file=test, **options).metrics
    own, refitted = (metrics["start"]["dev"][name] for name in ("own", "refitted"))
    assert refitted["cross_entropy"] < own["cross_entropy"]
    assert metrics["start"]["pooler"] == "refitted"
    assert metrics["evaluation"]["accuracy"] > 0.75
