"""Students start from the weights they are said to start from, and fit the cache they train on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdcache.building.builder import build
from kdcache.errors import ConfigError, ModelError
from kdcache.models import StudentSpec, load_student, student_sizes
from kdcache.store import Cache
from tests.conftest import bert_config, exchange_tokens, save_teacher

TASK: Any = "text-classification"
IDS = torch.tensor([[2, 90, 200, 31, 3]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


def equal(one: Any, other: Any) -> None:
    """Modules of equal weights, tensor by tensor."""
    theirs = dict(other.named_parameters())
    for name, tensor in one.named_parameters():
        assert torch.equal(tensor, theirs[name]), name


def test_bert_students_are_layers_of_their_teacher(cache: Cache, classifier: Path) -> None:
    student = load_student(cache, StudentSpec(init_from_teacher=(1, 4)), seed=0)
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    equal(student.bert.embeddings, teacher.bert.embeddings)
    equal(student.bert.encoder.layer[0], teacher.bert.encoder.layer[0])
    equal(student.bert.encoder.layer[1], teacher.bert.encoder.layer[3])
    equal(student.bert.pooler, teacher.bert.pooler)
    equal(student.classifier, teacher.classifier)
    assert len(student.bert.encoder.layer) == student.config.num_hidden_layers == 2
    teacher.bert.encoder.layer = torch.nn.ModuleList(
        [teacher.bert.encoder.layer[0], teacher.bert.encoder.layer[3]]
    )
    assert torch.equal(logits_of(student), logits_of(teacher))


def test_gpt2_students_are_layers_of_their_teacher(causal_cache: Cache, causal_lm: Path) -> None:
    student = load_student(causal_cache, StudentSpec(init_from_teacher=(2, 3)), seed=0)
    teacher = transformers.AutoModelForCausalLM.from_pretrained(causal_lm)
    teacher.transformer.h = torch.nn.ModuleList(list(teacher.transformer.h)[1:3])
    assert torch.equal(logits_of(student), logits_of(teacher))
    assert student.lm_head.weight is student.transformer.wte.weight
    others = load_student(causal_cache, StudentSpec(init_from_teacher=(1, 2)), seed=0)
    assert not torch.equal(logits_of(student), logits_of(others))


def test_all_layers_make_the_teacher_again(masked_cache: Cache, masked_lm: Path) -> None:
    student = load_student(masked_cache, StudentSpec(init_from_teacher=(1, 2, 3, 4)), seed=0)
    teacher = transformers.AutoModelForMaskedLM.from_pretrained(masked_lm)
    assert torch.equal(logits_of(student), logits_of(teacher))


@pytest.fixture
def own(tmp_path: Path, classifier: Path) -> Path:
    """A teacher's folder that a test may change."""
    return Path(shutil.copytree(classifier, tmp_path / "teacher"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kept_weights_outlive_the_teachers_folder(
    tmp_path: Path, corpus: Path, own: Path, dtype: str
) -> None:
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(own)
    made = build(
        corpus,
        teacher=own,
        task=TASK,
        out=tmp_path / "c",
        dtype=dtype,
        limit=9,
        keep_teacher_weights=True,
    )
    shutil.rmtree(own)
    student = load_student(made, StudentSpec(init_from_teacher=(2,)), seed=0)
    wanted = teacher.bert.encoder.layer[1]
    if dtype == "bf16":
        wanted = wanted.to(torch.bfloat16).float()
    equal(student.bert.encoder.layer[0], wanted)
    assert next(student.parameters()).dtype == torch.float32


def test_a_teachers_folder_serves_while_its_weights_are_the_same(
    tmp_path: Path, corpus: Path, own: Path
) -> None:
    made = build(corpus, teacher=own, task=TASK, out=tmp_path / "c", limit=9)
    spec = StudentSpec(init_from_teacher=(3,))
    student = load_student(made, spec, seed=0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(own)
    equal(student.bert.encoder.layer[0], model.bert.encoder.layer[2])
    model.classifier.weight.data[0, 0] += 1e-6
    model.save_pretrained(own)
    with pytest.raises(ModelError, match="no longer the cache's teacher: build the cache with --k"):
        load_student(made, spec, seed=0)
    shutil.rmtree(own)
    with pytest.raises(ModelError, match=r"the teacher's folder .* is gone: build the cache with"):
        load_student(made, spec, seed=0)


def test_a_configured_student_is_drawn_from_the_seed(
    tmp_path: Path, cache: Cache, tokenizer: Path
) -> None:
    bert_config(tokenizer, num_hidden_layers=1, hidden_size=16).save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        spec = StudentSpec(config=str(source))
        one, same, other = (load_student(cache, spec, seed=seed) for seed in (1, 1, 2))
        equal(one, same)
        assert not torch.equal(one.classifier.weight, other.classifier.weight)
        assert one.config.id2label == {0: "asyncio", 1: "email", 2: "tkinter"}
        assert one.config.problem_type == "single_label_classification"
        shape = student_sizes(spec, cache)
        assert (shape.outputs, shape.hidden, shape.layers) == (3, 16, 1)
        assert one.config.hidden_size == 16


def test_a_checkpoint_keeps_its_body_and_gets_the_caches_head(
    tmp_path: Path, cache: Cache, tokenizer: Path
) -> None:
    torch.manual_seed(3)
    body = transformers.BertModel(bert_config(tokenizer, num_hidden_layers=2))
    spec = StudentSpec(checkpoint=str(save_teacher(tmp_path / "s", tokenizer, body)))
    one, same, other = (load_student(cache, spec, seed=seed) for seed in (1, 1, 2))
    equal(one.bert, body)
    equal(one, same)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert one.classifier.weight.shape == (3, 32)


def test_students_of_a_regression_teacher_give_one_value(
    tmp_path: Path, regressor: Path, tokenizer: Path
) -> None:
    (tmp_path / "c.csv").write_text("text,score\none,0.5\ntwo,1.5\n")
    made = build(tmp_path / "c.csv", teacher=regressor, task=TASK, out=tmp_path / "c")
    bert_config(tokenizer).save_pretrained(tmp_path / "config")
    student = load_student(made, StudentSpec(config=str(tmp_path / "config")), seed=0)
    assert student.config.problem_type == "regression"
    assert logits_of(student).shape == (1, 1)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"checkpoint": "a", "config": "b"},
        {"checkpoint": "a", "init_from_teacher": (1,)},
        {"checkpoint": "a", "config": "b", "init_from_teacher": (1,)},
    ],
)
def test_a_student_comes_from_exactly_one_place(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"exactly one of .*; got {len(given)}"):
        StudentSpec(**given)


@pytest.mark.parametrize("layers", [(0, 1), (1, 5), (2, 1), (1, 1)])
def test_layers_the_teacher_lacks_are_refused(cache: Cache, layers: tuple[int, ...]) -> None:
    told = "-".join(map(str, layers))
    with pytest.raises(ConfigError, match=f"takes rising layers from 1 to 4; got {told}"):
        load_student(cache, StudentSpec(init_from_teacher=layers), seed=0)


def test_a_student_has_an_embedding_for_every_token_and_may_have_more(
    tmp_path: Path, masked_cache: Cache, tokenizer: Path
) -> None:
    spec = StudentSpec(config=str(tmp_path))
    bert_config(tokenizer, vocab_size=500).save_pretrained(tmp_path)
    message = r"row \d+ of the corpus .* holds token 5\d\d, and the student has 500 tokens: choose"
    with pytest.raises(ModelError, match=message):
        load_student(masked_cache, spec, seed=0)
    bert_config(tokenizer, vocab_size=607).save_pretrained(tmp_path)
    assert load_student(masked_cache, spec, seed=0).config.vocab_size == 607


def test_a_tokenizer_of_the_same_size_is_still_another_tokenizer(
    tmp_path: Path, cache: Cache, tokenizer: Path
) -> None:
    model = transformers.BertModel(bert_config(tokenizer))
    source = save_teacher(tmp_path / "s", tokenizer, model)
    exchange_tokens(source)
    with pytest.raises(ModelError, match=r"is not the cache's .*choose a student with the teacher"):
        load_student(cache, StudentSpec(checkpoint=str(source)), seed=0)


def test_a_head_with_other_classes_is_refused_by_name(
    tmp_path: Path, cache: Cache, tokenizer: Path
) -> None:
    model = transformers.BertForSequenceClassification(bert_config(tokenizer, num_labels=5))
    source = save_teacher(tmp_path / "s", tokenizer, model)
    with pytest.raises(ModelError, match=r"classifier\.bias is \[5\] in the weights and \[3\] by"):
        load_student(cache, StudentSpec(checkpoint=str(source)), seed=0)


def test_a_student_that_takes_too_few_tokens_is_refused(
    tmp_path: Path, cache: Cache, tokenizer: Path
) -> None:
    bert_config(tokenizer, max_position_embeddings=20).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="takes 20 tokens, the cache has documents of 48; choose"):
        load_student(cache, StudentSpec(config=str(tmp_path)), seed=0)


def test_an_encoder_cannot_be_a_causal_student(
    tmp_path: Path, causal_cache: Cache, tokenizer: Path
) -> None:
    bert_config(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a bert that reads in both directions"):
        load_student(causal_cache, StudentSpec(config=str(tmp_path)), seed=0)


def test_a_checkpoint_that_cannot_be_read_is_named(
    tmp_path: Path, cache: Cache, tokenizer: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty is no model folder: it has no config.json"):
        load_student(cache, StudentSpec(checkpoint=str(tmp_path / "empty")), seed=0)
    bert_config(tokenizer).save_pretrained(tmp_path / "bare")
    bare = StudentSpec(checkpoint=str(tmp_path / "bare"), same_tokenizer=True)
    with pytest.raises(ModelError, match=r"cannot load the student in .*bare: .*safetensors"):
        load_student(cache, bare, seed=0)
