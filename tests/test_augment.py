"""Augment: which words are replaced, by what, and how a run that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import kdcache
from kdcache.augmenting import fill_in, run
from kdcache.augmenting.fill_in import FillIn, Place, places_of, replaced
from kdcache.errors import ConfigError, MismatchError

LABELLED = [
    {"text": "The parser returns 3 values of the object.", "label": "one"},
    {"text": "It is a module", "label": "two"},
    {"text": "1 + 1 = 2", "label": None},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LABELLED), "utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def filling(masked_lm: Path) -> FillIn:
    model = transformers.AutoModelForMaskedLM.from_pretrained(masked_lm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked_lm)
    return FillIn(model, tokenizer, candidates=4, max_length=24, batch_size=3)


def test_words_are_letters_in_any_script() -> None:
    assert places_of(["Don't 2nd", "größer 漢字"]) == [
        Place(0, 0, 3),
        Place(0, 4, 5),
        Place(0, 7, 9),
        Place(1, 0, 6),
        Place(1, 7, 9),
    ]


def test_candidates_are_the_likeliest_whole_words_in_its_place(filling: FillIn) -> None:
    import torch

    texts = ["The parser returns"]
    (found,) = filling.of([texts])
    assert set(found) == {Place(0, 0, 3), Place(0, 4, 10), Place(0, 11, 18)}
    tokenizer = filling.tokenizer
    ids = tokenizer("the [MASK] returns", return_tensors="pt")
    with torch.inference_mode():
        logits = filling.model(**ids).logits[0]
    here = ids["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    order = tokenizer.convert_ids_to_tokens(logits[here].argsort(descending=True).tolist())
    whole = [word for word in order if word.isalpha() and word != "parser"]
    assert found[Place(0, 4, 10)] == whole[:4]
    assert all(word[0].isupper() for word in found[Place(0, 0, 3)])  # as the word was written


def test_a_mask_that_a_text_holds_stays_and_no_word_is_filled_into_it(filling: FillIn) -> None:
    import torch

    texts = ["Fill [MASK] in", "[MASK] the parser"]
    (found,) = filling.of([texts])
    words = {texts[place.text][place.start : place.end] for place in found}
    assert words == {"Fill", "in", "the", "parser"}
    tokenizer = filling.tokenizer
    ids = tokenizer("fill [MASK] in", "[MASK] the [MASK]", return_tensors="pt")
    here = (ids["input_ids"][0] == tokenizer.mask_token_id).nonzero()[-1, 0]
    with torch.inference_mode():
        order = filling.model(**ids).logits[0, here].argsort(descending=True).tolist()
    whole = [w for w in tokenizer.convert_ids_to_tokens(order) if w.isalpha() and w != "parser"]
    assert found[Place(1, 11, 17)] == whole[:4]


def test_words_beyond_what_the_model_sees_are_left(filling: FillIn) -> None:
    (found,) = filling.of([["word " * 40]])
    assert found[Place(0, 0, 4)]
    assert not found[Place(0, 195, 199)]


def test_a_word_is_replaced_with_the_probability_by_any_candidate() -> None:
    words = {Place(0, 0, 1): ["aa", "bb"], Place(1, 2, 3): ["c"], Place(1, 4, 5): []}
    made = [
        tuple(replaced(["x y", "x y z"], words, 0.5, np.random.default_rng(seed)))
        for seed in range(400)
    ]
    assert set(made) == {(a + " y", f"x {b} z") for a in ("x", "aa", "bb") for b in ("y", "c")}
    kept = sum(one[0] == "x y" for one in made)
    assert 160 < kept < 240


def test_a_corpus_comes_of_it_that_a_cache_is_built_of(
    source: Path, masked_lm: Path, classifier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "more.jsonl"
    made = kdcache.augment(source, masked_lm=masked_lm, out=out, samples=3, candidates=5)
    rows = rows_of(out)
    assert (made.documents, made.parents) == (len(rows), 3)
    assert 0 < len(rows) <= 6  # nothing can be said otherwise in the third
    assert not (tmp_path / "more.jsonl.parts").exists()
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == len(texts)
    for row in rows:
        parent = LABELLED[row["parent"]]
        assert row["label"] == parent["label"]
        assert row["text"] != parent["text"]
        assert len(row["text"].split()) == len(parent["text"].split())
        assert row["text"].endswith(".") == parent["text"].endswith(".")
        assert (row["round"], row["operation"]) == (1, "masked-lm")
    cache = kdcache.build(
        out,
        teacher=classifier,
        task="text-classification",
        out=tmp_path / "more.cache",
        label_column="",
        ignore_columns=["label", *run.PROVENANCE],
    )
    assert cache.plan.documents == len(rows)


def test_a_run_that_was_stopped_goes_on_to_the_same_texts(
    source: Path, masked_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TOGETHER", 1)
    options: dict[str, Any] = {"masked_lm": masked_lm, "samples": 3}
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    kdcache.augment(source, out=whole, **options)
    asked: list[int] = []
    of = fill_in.FillIn.of

    def stopping(self: FillIn, documents: Any) -> Any:
        asked.append(len(documents))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return of(self, documents)

    monkeypatch.setattr(fill_in.FillIn, "of", stopping)
    with pytest.raises(KeyboardInterrupt):
        kdcache.augment(source, out=out, **options)
    assert not out.exists()
    with pytest.raises(MismatchError, match="begun with other samples: say the same again"):
        kdcache.augment(source, out=out, **{**options, "samples": 2})
    kdcache.augment(source, out=out, **options)
    assert len(asked) == 4  # the first document once, the second twice
    assert out.read_bytes() == whole.read_bytes()
    with pytest.raises(MismatchError, match="is there already"):
        kdcache.augment(source, out=out, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 0}, "above 0, and 1 at most; got 0"),
        ({"samples": 0}, "samples must be 1 or more"),
        ({"out": "more.csv"}, r"call it \*\.jsonl"),
        ({"text_columns": ["round"]}, "column 'round' of the corpus"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"round": "a text"}\n', "utf-8")
    out = tmp_path / options.pop("out", "more.jsonl")
    with pytest.raises(ConfigError, match=message):
        kdcache.augment(path, masked_lm=tmp_path / "none", out=out, **options)
    assert list(tmp_path.iterdir()) == [path]
