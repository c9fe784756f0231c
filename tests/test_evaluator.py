"""Scores are those of an independent forward pass, and comparisons compare like with like."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from scipy.special import log_softmax
from sklearn import metrics as sk

from kdcache.building.builder import build
from kdcache.building.planner import plan
from kdcache.errors import (
    CacheError,
    ConfigError,
    CorpusError,
    IncompleteError,
    KdcacheError,
    ModelError,
)
from kdcache.evaluation.comparing import compare
from kdcache.evaluation.evaluator import evaluate
from kdcache.shipping import ship
from kdcache.store import Cache
from tests.conftest import bert_config, exchange_tokens, save_teacher, write_csv

TASK: Any = "text-classification"
NAMES = ["asyncio", "email", "tkinter"]


@torch.no_grad()
def forward(model: Path, texts: list[str], max_length: int) -> Any:
    """Logits of texts, one by one, by transformers alone; float64 [texts, outputs]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    rows = [
        loaded(**tokenizer(t, truncation=True, max_length=max_length, return_tensors="pt")).logits
        for t in texts
    ]
    return torch.cat(rows).double().numpy()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A smaller classifier of the same classes, that agrees with the teacher here and there."""
    torch.manual_seed(11)
    names = dict(enumerate(NAMES))
    config = bert_config(
        tokenizer,
        num_hidden_layers=1,
        initializer_range=0.3,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    model = transformers.BertForSequenceClassification(config)
    return save_teacher(tmp_path_factory.mktemp("student") / "student", tokenizer, model)


def test_classifier_scores_are_those_of_an_independent_forward(
    student: Path, classifier: Path, cache: Cache, corpus: Path, sentences: list[Any]
) -> None:
    found = evaluate(student, corpus, cache=cache.path, batch_size=7, limit=90)
    texts = [s.text for s in sentences[:90]]
    mine, theirs = forward(student, texts, 48), forward(classifier, texts, 48)
    labels = [NAMES.index(s.package) for s in sentences[:90]]
    predicted = mine.argmax(1)
    assert found["task"] == TASK
    assert found["documents"] == found["teacher_rows"]["documents"] == len(texts)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(labels, predicted))
    p, q = log_softmax(theirs, axis=1), log_softmax(mine, axis=1)
    assert found["cross_entropy"] == pytest.approx(
        sk.log_loss(labels, np.exp(q), labels=range(3)), rel=1e-5
    )
    agreement = (theirs.argmax(1) == predicted).mean()
    assert 0 < agreement < 1
    assert found["teacher_rows"]["agreement"] == pytest.approx(agreement)
    divergence = (np.exp(p) * (p - q)).sum(1).mean()
    assert found["teacher_rows"]["divergence"] == pytest.approx(divergence, rel=1e-4)
    weights = transformers.AutoModelForSequenceClassification.from_pretrained(student)
    assert found["parameters"] == sum(w.numel() for w in weights.parameters())
    assert found["documents_per_s"] > 0


@pytest.mark.parametrize("kind", ["cache", "masked_cache", "causal_cache"])
def test_a_teacher_agrees_with_its_own_cache(kind: str, request: pytest.FixtureRequest) -> None:
    made: Cache = request.getfixturevalue(kind)
    files = {"cache": "corpus", "masked_cache": "prose_file", "causal_cache": "prose_file"}
    file = request.getfixturevalue(files[kind])
    found = evaluate(made.manifest["teacher"]["source"], file, cache=made.path)
    rows = found["teacher_rows"]
    assert rows["documents"] == found["documents"] > 50
    # Two nearly equal logits may change places in another batch.
    assert rows["agreement"] == pytest.approx(1, abs=2e-3)
    assert 0 <= rows["divergence"] + 1e-7 < 5e-4


def test_only_documents_of_the_cache_are_compared(
    tmp_path: Path, student: Path, classifier: Path, cache: Cache, sentences: list[Any]
) -> None:
    shared = [(s.text, s.package) for s in sentences[::5]]
    path = write_csv(tmp_path / "c.csv", [*shared, ("Nobody wrote this before.", "email")] * 2)
    found = evaluate(student, path, cache=cache.path)
    texts = [text for text, _ in shared]
    wanted = forward(student, texts, 48).argmax(1) == forward(classifier, texts, 48).argmax(1)
    assert found["documents"] == found["teacher_rows"]["documents"] + 2 == 2 * len(shared) + 2
    assert found["teacher_rows"]["agreement"] == pytest.approx(wanted.mean())
    strange = write_csv(tmp_path / "strange.csv", [("Nobody wrote this before.", "email")])
    assert evaluate(student, strange, cache=cache.path)["teacher_rows"] == {
        "documents": 0,
        "agreement": None,
        "divergence": None,
    }


def test_the_teacher_is_scored_and_timed_beside(
    student: Path, classifier: Path, corpus: Path
) -> None:
    found = evaluate(student, corpus, teacher=classifier, max_length=48)
    alone = evaluate(classifier, corpus, max_length=48)
    for name in ("accuracy", "f1", "matthews", "cross_entropy", "parameters"):
        assert found["teacher"][name] == pytest.approx(alone[name], rel=1e-5)
    assert found["accuracy"] != alone["accuracy"]
    rates = found["documents_per_s"], found["teacher"]["documents_per_s"]
    assert found["speedup"] == pytest.approx(rates[0] / rates[1])


def test_regression_scores_are_those_of_an_independent_forward(
    tmp_path: Path, regressor: Path, sentences: list[Any]
) -> None:
    rows = [(s.text, f"{len(s.text) / 10:.1f}") for s in sentences[:60]]
    path = write_csv(tmp_path / "c.csv", [*rows, ("no score", "")], ("text", "score"))
    made = build(path, teacher=regressor, task=TASK, out=tmp_path / "c", max_length=48)
    found = evaluate(regressor, path, cache=made.path, by="length")
    assert found["slices"]["length"]["all"]["interval"] == pytest.approx(found["pearson_interval"])
    mine = forward(regressor, [text for text, _ in rows], 48)[:, 0]
    scores = np.array([float(score) for _, score in rows])
    pearson = stats.pearsonr(mine, scores).statistic
    assert found["pearson"] == pytest.approx(pearson, abs=1e-5)  # it is next to nothing
    rank = stats.spearmanr(mine, scores).statistic
    assert found["spearman"] == pytest.approx(rank, abs=3e-3)  # rounding swaps scores all but equal
    assert found["mse"] == pytest.approx(np.mean((mine - scores) ** 2), rel=1e-4)
    assert found["documents"] == found["teacher_rows"]["documents"] == 61
    assert found["teacher_rows"]["agreement"] is None
    assert found["teacher_rows"]["divergence"] == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_masked_perplexity_is_that_of_an_independent_forward(
    tmp_path: Path, masked_lm: Path, prose_file: Path
) -> None:
    sizes: dict[str, Any] = {"max_length": 48, "limit": 30}
    found = evaluate(masked_lm, prose_file, **sizes)
    made = plan(prose_file, tokenizer=masked_lm, task="masked-lm", out=tmp_path / "p", **sizes)
    model = transformers.AutoModelForMaskedLM.from_pretrained(masked_lm).eval()
    nats, right = [], []
    for doc in made.docs:
        start, count, first, masks = (
            int(made.per_document[name][doc])
            for name in ("doc_start", "doc_len", "masked_start", "masked_len")
        )
        ids = made.columns["tokens"][start : start + count].astype(np.int64)
        at = made.columns["masked_position"][first : first + masks]
        labels = made.columns["masked_label"][first : first + masks].astype(np.int64)
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].double().numpy()[at]
        nats += (-log_softmax(logits, axis=1)[np.arange(masks), labels]).tolist()
        right += (logits.argmax(1) == labels).tolist()
    assert found["rows"] == len(nats)
    assert found["cross_entropy"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(right), abs=2 / len(right))


@torch.no_grad()
def test_causal_perplexity_is_that_of_an_independent_forward(
    causal_lm: Path, prose_file: Path
) -> None:
    found = evaluate(causal_lm, prose_file, max_length=64, limit=30)
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal_lm)
    model = transformers.AutoModelForCausalLM.from_pretrained(causal_lm).eval()
    nats, count = 0.0, 0
    for text in prose_file.read_text().splitlines()[:30]:
        windows = tokenizer(text, truncation=True, max_length=64, return_overflowing_tokens=True)
        for ids in windows["input_ids"]:
            tokens = torch.tensor([ids])
            # Type ids of zero, as the tokenizer makes them.
            outputs = model(
                input_ids=tokens, token_type_ids=torch.zeros_like(tokens), labels=tokens
            )
            nats, count = nats + float(outputs.loss) * (len(ids) - 1), count + len(ids) - 1
    assert found["rows"] == count
    assert found["cross_entropy"] == pytest.approx(nats / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(nats / count), rel=1e-4)


@pytest.fixture
def own(tmp_path: Path, student: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(student, tmp_path / "model"))


def test_a_model_is_evaluated_as_it_was_trained(own: Path, cache: Cache, corpus: Path) -> None:
    """`train` notes the plan beside its model: its length holds unless another is asked for."""
    wanted = {length: evaluate(own, corpus, max_length=length) for length in (12, 48)}
    noted = {"plan_config": {**cache.plan.config.to_json(), "max_length": 12}}
    (own / "cache.json").write_text(json.dumps(noted))
    found = evaluate(own, corpus)["cross_entropy"]
    assert found == pytest.approx(wanted[12]["cross_entropy"])
    assert found != pytest.approx(wanted[48]["cross_entropy"])
    again = evaluate(own, corpus, max_length=48)["cross_entropy"]
    assert again == pytest.approx(wanted[48]["cross_entropy"])
    (own / "cache.json").write_text("{")
    with pytest.raises(ModelError, match=r"cache\.json is damaged"):
        evaluate(own, corpus)


def test_predictions_are_written_in_the_order_of_the_file(
    tmp_path: Path, student: Path, corpus: Path, sentences: list[Any]
) -> None:
    evaluate(student, corpus, max_length=48, predictions=tmp_path / "p.csv", limit=50)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    logits = forward(student, [s.text for s in sentences[:50]], 48)
    chances = np.exp(log_softmax(logits, axis=1))
    assert [row["label"] for row in rows] == [s.package for s in sentences[:50]]
    assert [row["prediction"] for row in rows] == [NAMES[i] for i in logits.argmax(1)]
    np.testing.assert_allclose([float(r["confidence"]) for r in rows], chances.max(1), atol=1e-4)
    for path in (tmp_path / "nothing" / "p.csv", tmp_path):
        with pytest.raises(CacheError, match=r"cannot write .*(make it first|name a file)"):
            evaluate(student, corpus, max_length=48, predictions=path, limit=4)


def test_an_unseen_label_is_named_to_the_line(tmp_path: Path, student: Path) -> None:
    path = write_csv(tmp_path / "c.csv", [("a text", "email"), ("another", "xml")])
    with pytest.raises(CorpusError, match=r"c\.csv:3: label 'xml' is not one of the 3 known"):
        evaluate(student, path)
    path = write_csv(tmp_path / "n.csv", [("a text", 2), ("another", 3)])
    with pytest.raises(CorpusError, match=r"n\.csv:3: label 3 is outside the teacher's 3 classes"):
        evaluate(student, path)


def test_a_file_without_labels_cannot_be_scored(tmp_path: Path, student: Path) -> None:
    (tmp_path / "c.txt").write_text("one\ntwo")
    with pytest.raises(CorpusError, match="no labels to score against; name them with --label-col"):
        evaluate(student, tmp_path / "c.txt")


def test_unlabelled_documents_are_left_out_of_the_scores(
    tmp_path: Path, student: Path, sentences: list[Any]
) -> None:
    rows = [(s.text, s.package) for s in sentences[:20]]
    full = evaluate(student, write_csv(tmp_path / "a.csv", rows), max_length=48)
    more = [*rows, *[(s.text, "") for s in sentences[20:40]]]
    found = evaluate(student, write_csv(tmp_path / "b.csv", more), max_length=48)
    assert found["documents"] == 40
    assert found["cross_entropy"] == pytest.approx(full["cross_entropy"])


def test_nothing_is_left_where_the_command_was_given(
    tmp_path: Path, student: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(student, corpus, limit=5)
    assert list(tmp_path.iterdir()) == []


def spoil(model: Path) -> None:
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model)
    loaded.classifier.bias.data[1] = float("nan")
    loaded.save_pretrained(model)


def rename(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {"0": "email", "1": "asyncio", "2": "tkinter"}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (model / "config.json").write_text(json.dumps(config))


def retokenize(model: Path) -> None:
    exchange_tokens(model)


def behead(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))


def remove(name: str) -> Any:
    return lambda model: (model / name).unlink()


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"batch_size": 0}, ConfigError, "batch_size must be 1 or more; got 0"),
        (
            None,
            {"max_length": 200},
            ModelError,
            r"takes 128 tokens, not \d+; pass --max-length 128",
        ),
        (None, {"device": "gpu"}, ConfigError, "unknown device 'gpu'; use auto, cpu, cuda"),
        (None, {"label_column": "text2"}, ConfigError, "has no column 'text2'"),
        (spoil, {}, ModelError, "outputs of model are not finite: its training diverged"),
        (rename, {"cache": True}, ModelError, "numbers its classes email, asyncio, tkinter, ..."),
        (retokenize, {"cache": True}, ModelError, "the model's tokenizer is not the cache's: 'of'"),
        (behead, {}, ModelError, "is a BertModel: not for any task"),
        (remove("config.json"), {}, ModelError, "is no model folder: it has no config.json"),
        (remove("model.safetensors"), {}, ModelError, "cannot load the teacher in .*safetensors"),
    ],
)
def test_a_model_or_option_that_does_not_fit_is_refused(
    tmp_path: Path,
    own: Path,
    cache: Cache,
    sentences: list[Any],
    change: Any,
    options: dict[str, Any],
    error: type[KdcacheError],
    message: str,
) -> None:
    long = " ".join(s.text for s in sentences[:30])
    path = write_csv(tmp_path / "c.csv", [(long, "email"), ("short", "tkinter")])
    if change is not None:
        change(own)
    if "cache" in options:
        options = {**options, "cache": cache.path}
    with pytest.raises(error, match=message):
        evaluate(own, path, **options)


def test_a_cache_that_cannot_be_compared_is_refused(
    tmp_path: Path, student: Path, cache: Cache, causal_cache: Cache, corpus: Path, tokenizer: Path
) -> None:
    with pytest.raises(ConfigError, match="is a model for text-classification; the cache is for c"):
        evaluate(student, corpus, cache=causal_cache.path)
    with pytest.raises(CacheError, match="not a kdcache cache"):
        evaluate(student, corpus, cache=tmp_path)
    half = Path(shutil.copytree(cache.path, tmp_path / "half.zarr"))
    shutil.rmtree(half / "complete")
    shutil.rmtree(half / "commits" / "000001")
    with pytest.raises(IncompleteError, match="parts are committed; run the same"):
        evaluate(student, corpus, cache=half)
    names = dict(enumerate([*NAMES, "xml"]))
    config = bert_config(tokenizer, id2label=names, label2id={n: i for i, n in names.items()})
    wider = transformers.BertForSequenceClassification(config)
    source = save_teacher(tmp_path / "wider", tokenizer, wider)
    with pytest.raises(ModelError, match="has 4 outputs and the cache's teacher 3: they cannot be"):
        evaluate(source, corpus, cache=cache.path)


def test_a_teacher_of_another_vocabulary_reads_texts_by_its_own(
    tmp_path: Path, student: Path, classifier: Path, corpus: Path
) -> None:
    other = Path(shutil.copytree(classifier, tmp_path / "teacher"))
    retokenize(other)
    found = evaluate(student, corpus, teacher=other, max_length=48)
    alone = evaluate(other, corpus, max_length=48)
    assert found["teacher"]["cross_entropy"] == alone["cross_entropy"]
    assert alone["cross_entropy"] != evaluate(classifier, corpus, max_length=48)["cross_entropy"]


def test_tokens_of_another_vocabulary_are_not_compared(
    tmp_path: Path, masked_lm: Path, prose_file: Path
) -> None:
    other = Path(shutil.copytree(masked_lm, tmp_path / "teacher"))
    retokenize(other)
    with pytest.raises(ModelError, match="is not the tokenizer of the teacher"):
        evaluate(masked_lm, prose_file, teacher=other, max_length=48, limit=8)


@pytest.mark.parametrize(
    ("trained", "header", "message"),
    [
        (["text"], ("text", "text_pair"), "column 'text_pair' makes a pair with text: .*--ignore"),
        (["text"], ("premise", "hypothesis"), "column text and cannot be .* premise and hypothes"),
        (["text1", "text2"], ("text",), "columns text1 and text2 and cannot be scored on column t"),
        (["one", "two"], ("two", "one"), None),
        (["text"], ("sentence",), None),
    ],
)
def test_a_model_of_one_text_is_not_scored_on_pairs(
    tmp_path: Path, own: Path, trained: list[str], header: tuple[str, ...], message: str | None
) -> None:
    corpus = {"text_columns": trained, "label_column": "label"}
    (own / "cache.json").write_text(json.dumps({"plan_config": {"task": TASK, "corpus": corpus}}))
    path = write_csv(tmp_path / "c.csv", [(*header, "email")], (*header, "label"))
    if message is None:
        assert evaluate(own, path)["documents"] == 1
    else:
        with pytest.raises(ConfigError, match=message):
            evaluate(own, path)


def test_columns_may_be_ignored_or_named(tmp_path: Path, own: Path) -> None:
    header = ("query", "passage", "label")
    path = write_csv(tmp_path / "c.csv", [("a text", "another", "email")], header)
    corpus = {"text_columns": ["query"], "label_column": "label"}
    (own / "cache.json").write_text(json.dumps({"plan_config": {"task": TASK, "corpus": corpus}}))
    with pytest.raises(ConfigError, match="'passage' makes a pair with query"):
        evaluate(own, path)
    ignored = evaluate(own, path, ignore_columns=["passage"])
    named = evaluate(own, path, text_columns=["query"])
    assert ignored["cross_entropy"] == named["cross_entropy"]


CODE = """
import transformers
class OwnConfig(transformers.BertConfig):
    model_type = "own"
class OwnForSequenceClassification(transformers.BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.mark.slow
def test_a_model_whose_code_comes_with_it_is_scored_where_it_is_trusted(
    own: Path,
    student: Path,
    classifier: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Task, classes and configuration are read by its code, too: `compare` asks all of that."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    config = json.loads((own / "config.json").read_text("utf-8"))
    name = "OwnForSequenceClassification"
    config |= {"model_type": "own", "architectures": [name]}
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForSequenceClassification": f"own.{name}",
    }
    (own / "config.json").write_text(json.dumps(config), "utf-8")
    (own / "own.py").write_text(CODE)
    sizes: dict[str, Any] = {"limit": 24, "max_length": 48, "progress": False}
    with pytest.raises(ModelError, match="contains custom code"):
        evaluate(own, corpus, **sizes)
    path = tmp_path / "said.csv"
    found = evaluate(own, corpus, trust_remote_code=True, predictions=path, **sizes)
    assert found["cross_entropy"] == evaluate(student, corpus, **sizes)["cross_entropy"]
    with path.open(encoding="utf-8", newline="") as file:
        assert {row["prediction"] for row in csv.DictReader(file)} <= {*NAMES}
    beside = compare(own, corpus, teacher=classifier, trust_remote_code=True, **sizes)
    assert [row["class"] for row in beside["classes"]] == NAMES
    pytest.importorskip("onnxruntime")
    with pytest.raises(ModelError, match="contains custom code"):
        ship(own, tmp_path / "untrusted", progress=False)
    shipped = ship(own, tmp_path / "shipped", trust_remote_code=True, progress=False)
    assert shipped["labels"] == ["asyncio", "email", "tkinter"]
