"""What `train` leaves is a model folder like any other: pipelines load it and say what we say."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from transformers import pipeline

from kdcache.building.builder import build
from kdcache.errors import ConfigError, ModelError
from kdcache.evaluation.evaluator import evaluate
from kdcache.labels.metrics import wilson
from kdcache.maintenance.verifying import verify
from kdcache.models.tokenizer import UNBOUNDED, serve_with
from kdcache.plans.batch import Batch
from kdcache.store import Cache
from kdcache.training.card import write_card
from kdcache.training.recipe import load_recipe
from kdcache.training.train import train
from tests.activations import say
from tests.conftest import write_csv

QUICK = ("training.max_steps=2", "training.learning_rate=1e-3")
LONG = "the event loop waits for a transport to close and then cancels the task " * 65


@pytest.fixture(scope="module")
def classifier_student(tmp_path_factory: pytest.TempPathFactory, cache: Cache) -> Path:
    out = tmp_path_factory.mktemp("serving") / "student"
    train(cache, recipe="kd", out=out, init_from_teacher=(2, 4), overrides=QUICK)
    return out


@pytest.fixture(scope="module")
def masked_student(tmp_path_factory: pytest.TempPathFactory, masked_cache: Cache) -> Path:
    out = tmp_path_factory.mktemp("serving") / "student"
    train(masked_cache, recipe="mlm-kd", out=out, init_from_teacher=(1, 4), overrides=QUICK)
    return out


@pytest.fixture(scope="module")
def causal_student(tmp_path_factory: pytest.TempPathFactory, causal_cache: Cache) -> Path:
    out = tmp_path_factory.mktemp("serving") / "student"
    train(causal_cache, recipe="causal-kd", out=out, init_from_teacher=(1, 4), overrides=QUICK)
    return out


def mixed_texts(sentences: list[Any]) -> list[str]:
    """Texts of one word to some 900, in no order of length."""
    return ["yes", LONG, *(s.text for s in sentences[:20]), LONG[:300]]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_classifier_in_a_pipeline_says_what_evaluate_says(
    classifier_student: Path, sentences: list[Any], tmp_path: Path, batch_size: int
) -> None:
    texts = mixed_texts(sentences)
    file = write_csv(tmp_path / "texts.csv", [(text, "email") for text in texts])
    evaluate(classifier_student, file, predictions=tmp_path / "said.csv")
    with (tmp_path / "said.csv").open(encoding="utf-8", newline="") as rows:
        ours = [(row["prediction"], float(row["confidence"])) for row in csv.DictReader(rows)]
    pipe = pipeline("text-classification", model=str(classifier_student), device="cpu")
    theirs = pipe(texts, truncation=True, batch_size=batch_size)
    assert [found["label"] for found in theirs] == [label for label, _ in ours]
    scores = [confidence for _, confidence in ours]
    assert [found["score"] for found in theirs] == pytest.approx(scores, abs=6e-5)


@torch.no_grad()
def logits_at(student: Path, ids: torch.Tensor, masked: bool) -> torch.Tensor:
    """Our logits of one document, [tokens, V] or, where a token is masked, its row alone."""
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    batch = Batch(input_ids=ids, attention_mask=torch.ones_like(ids))
    mask_id = transformers.AutoTokenizer.from_pretrained(student).mask_token_id
    batch["selected"] = (ids == mask_id).flatten().nonzero().squeeze(1)
    task: str = "masked-lm" if masked else "causal-lm"
    return say(auto.from_pretrained(student).eval(), task, batch, hidden=False).logits


def test_a_masked_model_in_a_pipeline_fills_in_our_tokens(masked_student: Path) -> None:
    pipe = pipeline("fill-mask", model=str(masked_student), device="cpu")
    mask = pipe.tokenizer.mask_token
    for text in (f"the {mask} loop", f"{mask} " + "a task that waits for another " * 5):
        found = pipe(text, top_k=3)
        logits = logits_at(masked_student, pipe.preprocess(text)["input_ids"], masked=True)
        top = logits[0].softmax(-1).topk(3)
        assert [entry["token"] for entry in found] == top.indices.tolist()
        assert [entry["score"] for entry in found] == pytest.approx(top.values.tolist(), rel=1e-4)
    long = pipe(f"the {mask} " + LONG, tokenizer_kwargs={"truncation": True})
    assert len(long) == 5


def test_a_causal_model_in_a_pipeline_goes_on_as_ours(causal_student: Path) -> None:
    pipe = pipeline("text-generation", model=str(causal_student), device="cpu")
    for text in ("the event loop", "a task", LONG[:120]):
        ids = pipe.preprocess(text)["input_ids"]
        (found,) = pipe(text, max_new_tokens=1, do_sample=False, return_tensors=True)
        logits = logits_at(causal_student, ids, masked=False)
        assert found["generated_token_ids"][-1] == int(logits[-1].argmax())


def test_a_tokenizer_cuts_where_the_student_ends(
    classifier_student: Path, causal_student: Path
) -> None:
    for student, length in ((classifier_student, 48), (causal_student, 64)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(student)
        assert tokenizer.model_max_length == length  # of the plan, which is below the model's 128
        assert len(tokenizer(LONG, truncation=True)["input_ids"]) == length


def test_a_tokenizer_without_a_pad_token_takes_the_models(tokenizer: Path, tmp_path: Path) -> None:
    for file in tokenizer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    del config["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    serve_with(tmp_path, length=None, pad_id=1)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token, loaded.pad_token_id) == ("[UNK]", 1)
    assert loaded.model_max_length == UNBOUNDED


def test_a_language_model_starts_with_its_teachers_generation_settings(
    folder: Path, causal_lm: Path, prose_file: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(causal_lm, teacher)
    settings = transformers.GenerationConfig(eos_token_id=[3, 7], do_sample=True, temperature=0.6)
    settings.save_pretrained(teacher)
    small = transformers.AutoConfig.from_pretrained(teacher, n_layer=1, n_embd=16)
    small.save_pretrained(tmp_path / "small")
    options: dict[str, Any] = {"task": "causal-lm", "limit": 8, "max_length": 32}
    made = build(prose_file, teacher=teacher, out=tmp_path / "cache.zarr", **options)
    for name, source in {
        "cut": {"init_from_teacher": (1, 2)},
        "new": {"config": str(tmp_path / "small")},
    }.items():
        train(made, recipe="causal-kd", out=tmp_path / name, overrides=QUICK, **source)
        found = transformers.GenerationConfig.from_pretrained(tmp_path / name)
        assert found.eos_token_id == [3, 7]
        assert found.temperature == 0.6


def test_the_folder_tells_no_path_of_this_machine(
    classifier_student: Path, cache: Cache, shared: Path
) -> None:
    assert str(shared) in cache.manifest["teacher"]["source"]
    for file in classifier_student.iterdir():
        assert str(shared).encode() not in file.read_bytes(), file.name


def test_the_folder_says_what_its_numbers_mean(classifier_student: Path) -> None:
    config = json.loads((classifier_student / "config.json").read_text("utf-8"))
    assert config["id2label"] == {"0": "asyncio", "1": "email", "2": "tkinter"}
    assert config["problem_type"] == "single_label_classification"
    assert config["dtype"] == "float32"


def test_the_card_tells_origin_and_scores(
    cache: Cache, classifier: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    source: dict[str, Any] = {"init_from_teacher": (2, 4), "overrides": QUICK}
    result = train(cache, recipe="kd", out=out, eval_file=corpus, eval_teacher=classifier, **source)
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    record, scores = cache.manifest, result.metrics["evaluation"]
    lines = (
        record["teacher"]["weights_sha256"],
        record["plan"]["config"]["corpus"]["sha256"],
        record["plan"]["sha256"],
        "layers 2-4 of the teacher",
        f"{record['teacher']['parameters']:,}",
        "On `sentences.csv`, 240 documents",
    )
    assert [fact for fact in lines if fact not in card.text] == []
    row = next(line for line in card.text.splitlines() if line.startswith("| accuracy"))
    for side in (scores, scores["teacher"]):
        low, high = wilson(side["accuracy"], 240)
        assert f"{side['accuracy']:.4g} ({low:.4g} to {high:.4g})" in row
    snippet = card.text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(snippet.replace("path/to/this/folder", str(out)), names)
    assert names["pipe"]("the event loop")[0]["label"] in ("asyncio", "email", "tkinter")


def test_a_card_stands_whatever_names_and_records_hold(
    classifier_student: Path, tmp_path: Path
) -> None:
    record = json.loads((classifier_student / "cache.json").read_text("utf-8"))
    (tmp_path / "cache.json").write_text(json.dumps({**record, "software": {}}))
    recipe = replace(load_recipe("kd"), student={"checkpoint": "one|or\nother"})
    metrics = {"parameters": 1, "steps": 1, "epochs": 1.0}
    write_card(tmp_path, recipe, metrics | {"partial": {"documents": 9, "of": 240}})
    card = ModelCard.load(tmp_path / "README.md").text
    assert "| initialised from | `one\\|or other` |" in card
    assert "| trained on | 9 of 240 planned documents |" in card


def test_a_student_keeps_every_chat_template_of_its_teacher(
    causal_lm: Path, prose_file: Path, tmp_path: Path
) -> None:
    teacher = shutil.copytree(causal_lm, tmp_path / "teacher")
    tokens = transformers.AutoTokenizer.from_pretrained(teacher)
    tokens.chat_template = {"default": "{{ messages }}", "rag": "{{ documents }}{{ messages }}"}
    tokens.save_pretrained(teacher)
    small: dict[str, Any] = {"task": "causal-lm", "limit": 8, "max_length": 32}
    made = build(prose_file, teacher=teacher, out=tmp_path / "cache.zarr", **small)
    assert verify(made.path, full=True) == []
    student = tmp_path / "student"
    train(made, recipe="causal-kd", out=student, init_from_teacher=(1,), overrides=QUICK)
    assert transformers.AutoTokenizer.from_pretrained(student).chat_template == tokens.chat_template


def test_an_evaluation_teacher_is_asked_for_before_training(
    cache: Cache, corpus: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"recipe": "kd", "out": tmp_path / "x", "init_from_teacher": (1,)}
    with pytest.raises(ConfigError, match="--eval"):
        train(cache, eval_teacher="teacher", **options)
    with pytest.raises(ModelError, match="nowhere"):
        train(cache, eval_file=corpus, eval_teacher=tmp_path / "nowhere", **options)
    assert not (tmp_path / "x").exists()
