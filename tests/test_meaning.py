"""What a model says its outputs and inputs mean is read before anything runs, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from kdcache.building.builder import build, estimate
from kdcache.errors import ModelError
from kdcache.evaluation.evaluator import evaluate
from kdcache.models import StudentSpec
from kdcache.models.student import load_student, student_config
from kdcache.store import Cache
from tests.conftest import bert_config, save_teacher, write_csv


def teacher(path: Path, tokenizer: Path, **config: object) -> Path:
    torch.manual_seed(0)
    made = bert_config(tokenizer, **{"num_hidden_layers": 1, "initializer_range": 0.2, **config})
    return save_teacher(path, tokenizer, transformers.BertForSequenceClassification(made))


def test_a_single_output_that_is_to_be_a_class_is_refused(
    tmp_path: Path, tokenizer: Path, corpus: Path
) -> None:
    """Newer versions of transformers refuse such a configuration themselves."""
    folder = teacher(tmp_path / "teacher", tokenizer, num_labels=1)
    record = json.loads((folder / "config.json").read_text())
    reason = json.dumps({**record, "problem_type": "single_label_classification"})
    (folder / "config.json").write_text(reason)
    with pytest.raises(ModelError, match=r"problem_type=.*regression") as caught:
        estimate(corpus, teacher=folder, task="text-classification")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_student_says_of_its_outputs_what_the_teacher_says(
    tmp_path: Path, tokenizer: Path, regressor: Path, cache: Cache
) -> None:
    several = {"problem_type": "multi_label_classification", "num_labels": 3}
    folder = teacher(tmp_path / "student", tokenizer, **several)
    spec = StudentSpec(checkpoint=str(folder))
    assert load_student(cache, spec, seed=0).config.problem_type == "single_label_classification"
    rows = [("the first text", 0.25), ("a second, longer text", 1.5), ("the third", -1.5)]
    values = build(
        write_csv(tmp_path / "values.csv", rows),
        teacher=regressor,
        task="text-classification",
        out=tmp_path / "values.zarr",
    )
    made = student_config(StudentSpec(config=str(regressor / "config.json")), values)
    assert (made.problem_type, made.num_labels) == ("regression", 1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [("a text", "and another one", 0), ("the second text", "", 1), ("of pairs", "too", 0)]
    header = ("text1", "text2", "label")
    return write_csv(tmp_path_factory.mktemp("pairs") / "pairs.csv", rows, header)


def test_models_with_one_token_type_are_refused_for_text_pairs_before_they_run(
    tmp_path: Path, tokenizer: Path, classifier: Path, pairs: Path
) -> None:
    one = teacher(tmp_path / "one", tokenizer, type_vocab_size=1)
    two = teacher(tmp_path / "two", tokenizer)
    task, columns, out = "text-classification", ("text1", "text2"), tmp_path / "one.zarr"
    with pytest.raises(ModelError, match="the teacher one has an embedding for 1 token type"):
        build(pairs, teacher=one, task=task, out=out, text_columns=columns)
    assert not out.exists()
    with pytest.raises(ModelError, match="one has an embedding for 1 token type"):
        evaluate(one, pairs, text_columns=columns)
    made = build(pairs, teacher=two, task=task, out=tmp_path / "two.zarr", text_columns=columns)
    with pytest.raises(ModelError, match="the student has an embedding for 1 token type"):
        student_config(StudentSpec(config=str(one)), made)
    single = build(pairs, teacher=one, task=task, out=out, text_columns=("text1",))
    assert single.complete, "without pairs a single token type is enough"


def test_models_without_token_types_take_text_pairs(
    tmp_path: Path, tokenizer: Path, pairs: Path
) -> None:
    """DeBERTa's 0 token types mean that it ignores them."""
    torch.manual_seed(0)
    sizes = json.loads((teacher(tmp_path / "bert", tokenizer) / "config.json").read_text())
    config = transformers.DebertaV2Config(
        **{name: sizes[name] for name in ("vocab_size", "hidden_size", "num_attention_heads")},
        num_hidden_layers=1,
        intermediate_size=32,
        type_vocab_size=0,
    )
    model = transformers.DebertaV2ForSequenceClassification(config)
    made = build(
        pairs,
        teacher=save_teacher(tmp_path / "deberta", tokenizer, model),
        task="text-classification",
        out=tmp_path / "pairs.zarr",
        text_columns=("text1", "text2"),
    )
    assert made.complete
