"""Two vocabularies are one when their tokens have the same numbers, whatever else differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from kdcache.building.builder import build
from kdcache.building.planner import plan
from kdcache.errors import ConfigError, ModelError
from kdcache.evaluation.evaluator import evaluate
from kdcache.models import StudentSpec, load_student, load_tokenizer
from kdcache.models.token_map import (
    TokenMap,
    difference,
    processing_difference,
    require_same_vocabulary,
    token_map,
)
from kdcache.store import Cache
from kdcache.training.train import train
from tests.conftest import bert_config, exchange_tokens, save_teacher

TASK: Any = "text-classification"
PLAIN = {"[CLS]": 0, "a": 1, "b": 2}


class Told:
    """Where progress is told: lines are kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def bar(self, label: str, *, unit: str, total: int | None) -> Any:
        return nullcontext(lambda done: None)

    def say(self, message: str) -> None:
        self.lines.append(message)


def tokens(ids: dict[str, int], *added: str) -> TokenMap:
    return TokenMap(ids, frozenset(added))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (tokens(PLAIN, "[CLS]"), ""),
        (tokens({**PLAIN, "[IMG]": 3}, "[IMG]"), ""),
        (tokens({"a": 1, "b": 2}), ""),
        (
            tokens({"a": 1, "b": 2, "[NEW]": 0}, "[NEW]"),
            "token 0 is '[CLS]' of the one and '[NEW]'",
        ),
        (tokens({**PLAIN, "c": 3}), "'c' is no token of the one and token 3 of the other"),
        (tokens({"[CLS]": 0, "a": 1}), "'b' is token 2 of the one and no token of the other"),
        (tokens({"[CLS]": 0, "a": 2, "b": 1}), "'a' is token 1 of the one and token 2 of the oth"),
        (tokens({"[CLS]": 3, "a": 1, "b": 2}), r"'[CLS]' is token 0 of the one and token 3 of the"),
    ],
)
def test_added_tokens_may_be_missing_and_nothing_may_be_elsewhere(
    other: TokenMap, why: str
) -> None:
    found = difference(tokens(PLAIN, "[CLS]"), other)
    assert found.startswith(why)
    assert bool(found) == bool(why)
    assert bool(difference(other, tokens(PLAIN, "[CLS]"))) == bool(why)


@pytest.fixture
def student(tmp_path: Path, tokenizer: Path) -> Path:
    """A checkpoint with the tokenizer of the caches."""
    model = transformers.BertModel(bert_config(tokenizer, num_hidden_layers=1))
    return save_teacher(tmp_path / "student", tokenizer, model)


def vocabulary(folder: Path) -> list[str]:
    """The tokens in the order of their ids, and the folder without tokenizer.json."""
    ids = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    return sorted(ids, key=ids.__getitem__)


def as_vocab_txt(folder: Path) -> None:
    words = vocabulary(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")


def cased(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"lowercase": true', '"lowercase": false', 1))


def without_separator(folder: Path) -> None:
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 2)])
    made.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("change", [as_vocab_txt, cased, without_separator])
def test_students_whose_tokenizer_has_the_caches_tokens_are_taken(
    student: Path, cache: Cache, change: Callable[[Path], None]
) -> None:
    change(student)
    load_student(cache, StudentSpec(checkpoint=str(student)), seed=0)


def exchanged_vocab_txt(folder: Path) -> None:
    words = vocabulary(folder)
    words[100], words[101] = words[101], words[100]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")


def byte_pairs(folder: Path) -> None:
    """RoBERTa's kind of tokenizer, as vocab.json and merges.txt."""
    vocabulary(folder)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(["some text, and more of it"] * 9, 600, 1, special_tokens=special)
    made.save_model(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))


@pytest.mark.parametrize("change", [exchange_tokens, exchanged_vocab_txt, byte_pairs])
@pytest.mark.parametrize("sure", [False, True])
def test_students_with_other_tokens_are_refused_whatever_is_said_of_them(
    student: Path, cache: Cache, change: Callable[[Path], Any], sure: bool
) -> None:
    change(student)
    spec = StudentSpec(checkpoint=str(student), same_tokenizer=sure)
    with pytest.raises(
        ModelError, match=r"is not the cache's \(.* of the one and .*; choose a stu"
    ):
        load_student(cache, spec, seed=0)


def bare(folder: Path) -> None:
    vocabulary(folder)
    for file in folder.glob("*token*"):
        file.unlink()


def named_only(folder: Path) -> None:
    """Files that say how to use a vocabulary, and none: transformers makes an empty one."""
    vocabulary(folder)
    (folder / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize("change", [bare, named_only])
def test_a_student_without_a_tokenizer_needs_a_word_for_it(
    student: Path, cache: Cache, change: Callable[[Path], None]
) -> None:
    change(student)
    with pytest.raises(ModelError, match=r"cannot tell whether .* holds no tokenizer.*--same-tok"):
        load_student(cache, StudentSpec(checkpoint=str(student)), seed=0)
    load_student(cache, StudentSpec(checkpoint=str(student), same_tokenizer=True), seed=0)


def test_a_word_for_a_tokenizer_is_for_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--same-tokenizer is for a checkpoint"):
        StudentSpec(config=str(tmp_path), same_tokenizer=True)


def test_a_hub_name_whose_tokenizer_is_out_of_reach_is_refused(cache: Cache) -> None:
    with pytest.raises(
        ModelError, match=r"cannot tell whether nobody/nothing numbers its tokens as "
    ):
        require_same_vocabulary(cache, "nobody/nothing", unless_none=False)
    require_same_vocabulary(cache, "nobody/nothing", unless_none=True)


def test_a_configured_student_takes_the_caches_tokenizer(student: Path, cache: Cache) -> None:
    exchange_tokens(student)
    load_student(cache, StudentSpec(config=str(student)), seed=0)


def test_train_takes_the_word_and_keeps_it_with_the_run(
    tmp_path: Path, student: Path, cache: Cache, corpus: Path
) -> None:
    bare(student)
    steps: dict[str, Any] = {"recipe": "kd", "overrides": ["training.max_steps=1"], "device": "cpu"}
    with pytest.raises(ModelError, match="--same-tokenizer"):
        train(cache, student=student, out=tmp_path / "no", **steps)
    assert not (tmp_path / "no").exists()
    made = train(cache, student=student, out=tmp_path / "run", same_tokenizer=True, **steps)
    assert "same_tokenizer = true" in (made.folder / "recipe.toml").read_text()
    evaluate(made.folder, corpus, cache=cache, limit=9)
    exchange_tokens(made.folder)
    with pytest.raises(ModelError, match=r"numbers other tokens than the one it was trained with"):
        evaluate(made.folder, corpus, limit=9)


def test_a_teachers_own_tokenizer_is_held_against_the_one_that_is_given(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    wrong = exchange_tokens(Path(shutil.copytree(classifier, tmp_path / "wrong")))
    asked: dict[str, Any] = {"teacher": classifier, "task": TASK, "limit": 5}
    with pytest.raises(ModelError, match=r"is not the tokenizer of the teacher classifier: '"):
        build(corpus, tokenizer=wrong, out=tmp_path / "c", **asked)
    assert not (tmp_path / "c").exists()


def test_a_plan_of_a_tokenizer_that_only_cuts_otherwise_is_built_with_a_note(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    chat = Path(shutil.copytree(classifier, tmp_path / "chat"))
    without_separator(chat)
    plan(corpus, tokenizer=chat, task=TASK, out=tmp_path / "plan", limit=5)
    asked: dict[str, Any] = {"teacher": classifier, "task": TASK}
    with pytest.raises(ModelError, match=r"SHA-256 differ\): .* name the plan's with --tokenizer"):
        build(tmp_path / "plan", out=tmp_path / "c", **asked)
    told = Told()
    made = build(tmp_path / "plan", tokenizer=chat, out=tmp_path / "c", progress=told, **asked)
    assert any("differs from it in post_processor" in line for line in told.lines)
    assert made.complete


def test_loading_tells_what_a_tokenizer_is_made_of(student: Path, tokenizer: Path) -> None:
    cased(student)
    one, other = load_tokenizer(student), load_tokenizer(tokenizer)
    assert processing_difference(one, other) == "normalizer"
    assert token_map(one.plain).sha256 == token_map(other.plain).sha256
    exchange_tokens(student)
    assert token_map(load_tokenizer(student).plain).sha256 != token_map(other.plain).sha256
