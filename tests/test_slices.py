"""Slices: what a column cuts, scores and intervals of what is cut, and the slice that is worst."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers

import kdcache
from kdcache.corpora.documents import open_corpus
from kdcache.errors import ConfigError, CorpusError, KdcacheError
from kdcache.evaluation.cuts import BANDS, MOST, Cut, bands, read_cuts
from kdcache.evaluation.slices import _Sides, _worst, draws, most_lost
from kdcache.evaluation.told import rows_of, worst_of
from kdcache.labels import LABEL_KINDS
from kdcache.labels.metrics import Z95
from kdcache.tasks.summed import Summed, f1, mean
from kdcache.tasks.token_classification import entity_f1, entity_scores
from tests.conftest import write_csv

NAMES = ["asyncio", "email", "tkinter"]
SCORED = {name: kind for name, kind in LABEL_KINDS.items() if kind.scores is not None}


def labelled(name: str, rng: np.random.Generator, count: int = 57) -> tuple[Any, Any]:
    """Outputs and labels of documents of a kind, as it has them."""
    kind = SCORED[name]
    outputs = rng.normal(size=(count, 1 if name == "regression" else 3)).astype(np.float32)
    if np.dtype(kind.dtype).kind == "f":
        near = outputs + rng.normal(size=outputs.shape).astype(np.float32)
        return outputs, near if kind.wide else near[:, 0]
    if kind.wide:
        return outputs, rng.integers(0, 2, outputs.shape).astype(kind.dtype)
    return outputs, rng.integers(0, 3, count).astype(kind.dtype)


@pytest.mark.parametrize("name", SCORED)
def test_a_kinds_score_is_that_of_the_sums_of_its_documents(name: str) -> None:
    """Of all documents, of some of them, and its interval where it has one in closed form."""
    kind = SCORED[name]
    outputs, labels = labelled(name, np.random.default_rng(3))
    assert kind.scores is not None
    assert kind.summed is not None
    made = kind.summed(outputs, labels)
    for chosen in (np.arange(len(labels)), np.arange(5, 31)):
        scores = kind.scores(outputs[chosen], labels[chosen], NAMES[: outputs.shape[1]])
        sums = made.adds[chosen].sum(0)
        assert float(made.of(sums)) == pytest.approx(scores[made.name], rel=1e-6)
        closed = made.interval(sums)
        if closed is not None:
            assert closed == pytest.approx(scores[f"{made.name}_interval"], rel=1e-6)
    outputs[:] = 0  # of a model that says nothing the score is made of sums in the same way
    nothing = kind.summed(outputs[:, :1] if not kind.wide else outputs, labels)
    assert (nothing.name, float(nothing.of(sums))) == (made.name, float(made.of(sums)))
    one = float(made.of(made.adds[:1].sum(0)))
    assert np.isnan(one) or made.low <= one <= made.high


@pytest.mark.parametrize("name", ["regression", "vectors"])
def test_values_that_are_all_alike_are_told_by_their_error(name: str) -> None:
    kind = SCORED[name]
    outputs, labels = labelled(name, np.random.default_rng(4))
    assert kind.summed is not None
    made = kind.summed(outputs, np.full_like(labels, 2.5))
    assert made.name == "mse"
    assert float(made.of(made.adds.sum(0))) == pytest.approx(
        np.mean((outputs - 2.5) ** 2), rel=1e-6
    )
    varied = kind.summed(outputs, np.where(np.arange(len(labels)) < 20, 7.0, labels.T).T)
    assert np.isnan(varied.of(varied.adds[:20].sum(0)))  # far from 0, sums leave a rest
    assert np.isfinite(varied.of(varied.adds.sum(0)))


def test_entities_add_up_to_their_f1() -> None:
    names, rng = ["O", "B-PER", "I-PER", "B-LOC"], np.random.default_rng(5)
    counts = np.array([4, 0, 7, 1, 9])
    labels, predicted = rng.integers(0, 4, (2, counts.sum()))
    labels[3] = -100
    made = entity_f1(predicted, labels, counts, names)
    assert made is not None
    assert made.adds.shape == (5, 2)
    scores = entity_scores(predicted, labels, counts, names)
    assert float(made.of(made.adds.sum(0))) == pytest.approx(scores["entity_f1"])
    assert np.isnan(made.of(made.adds[1:2].sum(0)))  # no entity to find, and none is told
    assert entity_f1(predicted, labels, counts, ["NOUN", "VERB", "X", "Y"]) is None


def sides(made: Summed, other: Summed | None = None, *, closed: bool = False) -> _Sides:
    return _Sides(made, other, closed=closed)


def every(count: int) -> Any:
    return np.ones(count, np.bool_)


def test_draws_hold_what_the_normal_interval_holds() -> None:
    values = np.random.default_rng(6).gamma(2.0, size=400)
    low, high = sides(mean("cross_entropy", values)).measured(every(400))["interval"]
    half = Z95 * values.std() / np.sqrt(400)
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=half / 8)
    again = sides(mean("cross_entropy", values)).measured(every(400))["interval"]
    assert again == [low, high]


def test_a_drop_is_drawn_on_the_same_documents_of_both() -> None:
    """Both are right on nearly the same documents: apart, their intervals would hold far more."""
    rng = np.random.default_rng(7)
    teacher = rng.random(300) < 0.7
    student = teacher & (rng.random(300) < 0.95)
    found = sides(mean("accuracy", student), mean("accuracy", teacher)).measured(every(300))
    assert found["drop"]["value"] == pytest.approx(teacher.mean() - student.mean())
    low, high = found["drop"]["interval"]
    assert 0 < low < found["drop"]["value"] < high
    assert high - low < (found["interval"][1] - found["interval"][0]) / 2
    nats = sides(mean("cross_entropy", rng.random(300) + 1), mean("cross_entropy", rng.random(300)))
    assert nats.measured(every(300))["drop"]["value"] > 0  # more of it is worse


def test_few_documents_leave_all_that_can_be() -> None:
    values, right = np.arange(9.0), np.ones(9, np.int64)
    both = sides(mean("mse", values), mean("mse", values)).measured(every(9))
    assert both["interval"] == [0, np.inf]
    assert both["drop"]["interval"] == [-np.inf, np.inf]
    assert sides(f1("micro_f1", right, 2 * right)).measured(every(9))["interval"] == [0, 1]
    none = sides(f1("micro_f1", 0 * right, 0 * right)).measured(every(9))
    assert none == {"value": None, "interval": None}
    nothing = sides(mean("accuracy", values[:0])).measured(every(0))
    assert nothing == {"value": None, "interval": None}


def test_draws_of_more_than_fits_at_once_are_the_sums_of_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kdcache.evaluation.slices.AT_ONCE", 70)
    (found,) = draws([np.ones((23, 1))])
    assert found.shape == (1000, 1)
    assert (found == 23).all()


def test_most_is_lost_where_the_drop_is_largest_sure_or_not() -> None:
    """Of the slices that have a score; of several as bad it is the largest, and drops are those of
    `measured`.
    """
    right = np.repeat([1.0, 0.0, 1.0, 0.0], [30, 10, 2, 1])
    student, teacher = mean("accuracy", right), mean("accuracy", np.ones(43))
    codes = np.repeat([0, 1, 2, 3], [20, 20, 2, 1]).astype(np.int32)
    cut = Cut(column="domain", names=("a", "b", "c", None, "empty"), codes=codes)
    some = np.arange(42)
    made = [replace(side, adds=side.adds[some]) for side in (student, teacher)]
    (found,) = most_lost(*made, [cut], some, closed=False).values()
    assert (found["slice"], found["labelled"]) == ("b", 20)
    assert found["drop"]["value"] == 0.5
    assert found | sides(*made).measured(codes[some] == 1) == found
    (whole,) = most_lost(student, teacher, [cut], np.arange(43), closed=False).values()
    assert (whole["slice"], whole["labelled"], whole["drop"]["value"]) == (None, 1, 1.0)
    nothing = replace(cut, codes=np.full(43, -1, np.int32))
    assert most_lost(student, teacher, [nothing], np.arange(43), closed=False) == {"domain": None}


def row(name: str | None, value: float | None, *interval: float) -> dict[str, Any]:
    return {
        "slice": name,
        "documents": 12,
        "labelled": 12,
        "value": value,
        "interval": list(interval) or None,
        "scores": {},
    }


def test_the_worst_slice_is_one_that_is_apart_or_it_says_so() -> None:
    whole = {"value": 0.8, "documents": 99, "labelled": 99, "interval": [0.7, 0.9]}
    rows = [row("few", 0.2, 0.0, 0.9), row("sure", 0.6, 0.5, 0.7), row(None, 0.9, 0.8, 1.0)]
    worst = _worst(rows, whole, -1)
    assert worst is not None
    assert (worst["slice"], worst["apart"]) == ("sure", True)
    chance = _worst([rows[0], rows[2]], whole, -1)
    assert chance is not None
    assert (chance["slice"], chance["apart"]) == ("few", False)
    more = _worst([row("a", 0.9, 0.85, 0.95), row("b", 1.2, 0.7, 3.0)], whole, 1)
    assert more is not None
    assert (more["slice"], more["apart"]) == ("a", True)
    assert _worst([row("empty", None)], whole, -1) is None

    told = {"metric": "micro_f1", "higher_is_better": True, "all": whole, "rows": rows}
    (line,) = worst_of("domain", {**told, "worst": chance})
    assert line == (
        "worst by domain: few, micro f1 0.2 (0 to 0.9) of 12 documents, which may be chance: the "
        "interval holds the 0.8 of all"
    )
    (line,) = worst_of("domain", {**told, "worst": worst})
    assert line.endswith("sure, micro f1 0.6 (0.5 to 0.7) of 12 documents; 0.8 of all")
    assert list(worst_of("domain", {**told, "worst": None})) == [
        "worst by domain: no slice has a score"
    ]
    drop, lost = {**whole, "drop": {"value": 0.01}}, {**row("a", 0.25, 0.1, 0.4), "apart": True}
    (line,) = worst_of("domain", {**told, "all": drop, "worst_drop": lost})
    assert "worst drop by domain: a, drop 0.25 (0.1 to 0.4) of 12 documents" in line
    assert [cells[0] for cells in rows_of(told, 2)] == ["all", "few", "sure"]


def cut_of(source: Any, *by: str) -> list[Cut]:
    ignored = [name for name in ("note",) if name in getattr(source, "columns", ())]
    return read_cuts(open_corpus(source, ignore_columns=ignored), by, source)


def frame(**columns: Any) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    return pd.DataFrame({"text": [f"text {i}" for i in range(count)], **columns})


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (["b", " a ", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "9", "x"], ("10", "9", "x"), [0, 1, 2]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([1.0, np.nan, 2.5], ("1", "2.5", None), [0, 2, 1]),
        ([True, False, None], ("False", "True", None), [1, 0, 2]),
        (["日本語", "émile", ""], ("émile", "日本語", None), [1, 0, 2]),
        (["only"] * 3, ("only",), [0, 0, 0]),
    ],
    ids=["text", "digits", "numbers", "floats", "truths", "unicode", "one"],
)
def test_slices_are_the_values_of_a_column(values: Any, names: Any, codes: Any) -> None:
    (found,) = cut_of(frame(label=["a", "b", "a"], domain=values), "domain", "domain")
    assert found.names == names
    assert found.codes.tolist() == codes
    assert [found.name(i) for i in range(3)] == [names[code] for code in codes]


def test_a_column_that_is_ignored_or_named_otherwise_slices_too(tmp_path: Path) -> None:
    source = frame(label=["a", "b"], note=["one two three four", "five six seven eight"])
    note, label = cut_of(source, "note", "label")
    assert note.names == ("five six seven eight", "one two three four")
    assert label.names == ("a", "b")
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a", "domain": "x"}\n{"text": "b"}\n', "utf-8")
    assert cut_of(path, "domain")[0].names == ("x", None)
    length, named = cut_of(frame(domain=["a", "b"]), "length", "domain")
    assert (length.names, named.names) == ((), ("a", "b"))
    assert cut_of(frame(length=["short", "long"]), "length")[0].names == ("long", "short")


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        (
            None,
            ConfigError,
            r"no column 'domain' to slice by; its columns are text, label, and len",
        ),
        ([None] * 3, CorpusError, "column 'domain' is empty"),
        ([[1], [2], [3]], CorpusError, "row 0: column 'domain' holds list: slices are told apart"),
        (range(5000), CorpusError, r"row 1000: column 'domain' has more than 1,000 values"),
    ],
    ids=["missing", "empty", "lists", "many"],
)
def test_what_makes_no_slices_is_refused(values: Any, error: Any, words: str) -> None:
    columns = {} if values is None else {"domain": values}
    count = 3 if values is None else len(values)
    with pytest.raises(error, match=words):
        cut_of(frame(label=["a"] * count, **columns), "domain")


def test_bands_hold_as_many_documents_as_can_be() -> None:
    assert MOST > BANDS
    assert np.bincount(bands(np.arange(40), 4)).tolist() == [10] * 4
    assert bands(np.full(9, 5), 4).tolist() == [0] * 9
    assert bands(np.array([9, 1, 1, 9, 1]), 4).tolist() == [1, 0, 0, 1, 0]


def test_a_slice_without_labels_or_of_one_class_is_told(
    tmp_path: Path, classifier: Path, sentences: list[Any]
) -> None:
    """Of `bare` nothing is labelled, `one` has a class, the only document of `lone` is one."""
    rows = [(s.text, s.package, "many") for s in sentences[:40]]
    rows += [(s.text, "", "bare") for s in sentences[40:43]]
    rows += [(s.text, "email", "one") for s in sentences[43:49]]
    rows += [("The text, and a comma", "tkinter", "lone")]
    path = write_csv(tmp_path / "c.csv", rows, ("text", "label", "domain"))
    said = tmp_path / "said.csv"
    found = kdcache.evaluate(
        classifier, path, by="domain", predictions=said, teacher=classifier, progress=False
    )
    json.dumps(found, allow_nan=False)
    of = found["slices"]["domain"]
    by = {one["slice"]: one for one in of["rows"]}
    assert [*by] == ["bare", "lone", "many", "one"]
    assert (by["bare"]["documents"], by["bare"]["labelled"], by["bare"]["value"]) == (3, 0, None)
    assert by["bare"]["scores"] == {}
    assert by["lone"]["interval"][1] - by["lone"]["interval"][0] > 0.7
    for name in ("many", "one", "lone"):
        assert by[name]["interval"] == pytest.approx(by[name]["scores"]["accuracy_interval"])
        assert np.isfinite([by[name]["scores"][score] for score in ("f1", "matthews")]).all()
    assert of["all"]["value"] == found["accuracy"]
    text = repr(found)
    assert "<Scores of text-classification>" in text
    assert re.search(r"^bare +3 \(0 labelled\) +- +- +-", text, re.MULTILINE)
    assert "worst drop by domain: none, the student is worse on no slice" in text

    with said.open(encoding="utf-8", newline="") as file:
        told = list(csv.DictReader(file))
    assert [(r["text"], r["label"], r["slice: domain"]) for r in told] == rows
    config = transformers.AutoConfig.from_pretrained(classifier)
    chances = [f"probability: {config.id2label[i]}" for i in range(config.num_labels)]
    for one in told:
        assert sum(float(one[chance]) for chance in chances) == pytest.approx(1, abs=1e-5)


def test_a_column_that_is_not_there_is_refused_before_a_model_loads(
    tmp_path: Path, classifier: Path, corpus: Path
) -> None:
    bare = tmp_path / "model"
    bare.mkdir()
    (bare / "config.json").write_bytes((classifier / "config.json").read_bytes())
    with pytest.raises(KdcacheError, match="no column 'region' to slice by; its columns are"):
        kdcache.evaluate(bare, corpus, by=["length", "region"])
    with pytest.raises(KdcacheError, match=r"weights|tokenizer|load"):
        kdcache.evaluate(bare, corpus, by="length")
