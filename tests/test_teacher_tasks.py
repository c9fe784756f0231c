"""A teacher of another task over one plan: a language model's soft labels for every token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import kdcache
from kdcache.building.builder import build, estimate
from kdcache.errors import ConfigError, DamageError
from kdcache.maintenance.exporting import export
from kdcache.maintenance.merging import merge
from kdcache.signals import LOGITS, SoftLabels, Tap
from kdcache.store import Cache, open_cache, open_plan
from kdcache.tasks import IGNORE_INDEX, TASKS, over
from kdcache.training.train import train
from kdcache_cli.main import main
from tests.damage import forge_manifest

CLASSES, WORDS = "text-classification", "masked-lm"
SIGNALS = ["logits:topk,k=16", "hidden:layers=2,positions=all,dtype=fp32"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, corpus: Path, classifier: Path) -> Path:
    out = tmp_path_factory.mktemp("plan") / "plan.zarr"
    kdcache.plan(corpus, tokenizer=classifier, task=CLASSES, out=out, max_length=24, limit=40)
    return out


@pytest.fixture(scope="module")
def classes(plan: Path, classifier: Path) -> Cache:
    return build(plan, teacher=classifier, task=CLASSES, out=plan.parent / "classes.cache")


@pytest.fixture(scope="module")
def words(plan: Path, masked_lm: Path) -> Cache:
    """What a masked language model says of every token of unmasked texts."""
    options: dict[str, Any] = {"task": CLASSES, "teacher_task": WORDS, "signals": SIGNALS}
    return build(plan, teacher=masked_lm, out=plan.parent / "words.cache", **options)


@pytest.fixture(scope="module")
def both(plan: Path, classes: Cache, words: Cache) -> Path:
    merge([classes.path, words.path], plan.parent / "both.cache")
    return plan.parent / "both.cache"


def test_every_token_has_the_soft_labels_of_the_unmasked_text(
    words: Cache, masked_lm: Path, plan: Path
) -> None:
    assert words.plan.sha256 == open_plan(plan).sha256
    assert words.plan.task.rows == "token"
    assert words.manifest["teacher"]["task"] == WORDS
    model = transformers.AutoModelForMaskedLM.from_pretrained(masked_lm).eval()
    docs = words.plan.docs[[3, 0, 17]]
    batch = words.batch(docs, [])
    with torch.inference_mode():
        names = ("input_ids", "attention_mask", "token_type_ids")
        logits = model(**{name: batch[name] for name in names}).logits[batch.mask]
    soft = words.stored(docs, LOGITS)
    assert isinstance(soft, SoftLabels)
    assert soft.ids.shape == (batch.tokens, 16)
    exact = logits.log_softmax(-1).gather(1, soft.ids.long())
    assert float((soft.logprobs - exact).abs().max()) < 0.1
    likeliest = logits.argmax(-1)
    assert (soft.ids == likeliest.unsqueeze(1)).any(1).all()
    assert words.stored(docs, Tap("hidden", 2)).dense().shape == (batch.tokens, 32)
    assert (batch["labels"] == IGNORE_INDEX).all()
    assert len(batch["labels"]) == batch.tokens
    assert words.plan.labelled == 0


def test_it_is_planned_checked_exported_and_spotted_like_any_other(
    words: Cache, plan: Path, masked_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = estimate(plan, teacher=masked_lm, task=CLASSES, teacher_task=WORDS, signals=SIGNALS)
    assert found.plan.task == words.plan.task
    assert build(
        plan, teacher=masked_lm, task=CLASSES, teacher_task=WORDS, signals=SIGNALS, out=words.path
    ).complete
    verify = ["verify", str(words.path), "--spot", "2", "--teacher", str(masked_lm), "--json"]
    assert main(verify) == 0
    export(words.path, tmp_path / "out")
    capsys.readouterr()
    assert main(["inspect", str(words.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signals"]


def test_merged_it_is_a_further_teacher_of_the_plan(
    both: Path, classes: Cache, words: Cache
) -> None:
    cache = open_cache(both)
    (name,) = cache.teachers
    theirs = open_cache(both, teacher=name)
    docs = cache.plan.docs[:5]
    assert cache.plan.task.name == CLASSES
    assert theirs.plan.task == words.plan.task
    assert torch.equal(theirs.stored(docs, LOGITS).ids, words.stored(docs, LOGITS).ids)
    rows = cache.rows(docs, [f"teachers/{name}/logits/ids"])
    assert np.array_equal(next(iter(rows.values())), words.rows(docs, ["logits/ids"])["logits/ids"])
    assert torch.equal(cache.batch(docs)["labels"], classes.batch(docs)["labels"])


def test_a_student_learns_from_both_with_a_head_each(
    both: Path, classifier: Path, tmp_path: Path
) -> None:
    (name,) = open_cache(both).teachers
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.AutoConfig.from_pretrained(classifier, **sizes).save_pretrained(tmp_path / "c")
    command = (
        f"train sst={both} words={both} --teacher words={name} --recipe kd --mix even "
        f"--config {tmp_path / 'c'} --out {tmp_path / 'out'} --device cpu --quiet"
    )
    settings = ["training.max_steps=6", "training.logging_steps=1", "losses.hard.weight=0.5"]
    steps = [word for one in settings for word in ("--set", one)]
    assert main([*command.split(), *steps, "--dev-split", "20%", "--dev-every", "3"]) == 0
    log = json.loads((tmp_path / "out" / "training_log.json").read_text("utf-8"))
    terms = {name for entry in log for name in entry if name.startswith("loss_")}
    assert terms == {"loss_sst.kl", "loss_sst.hard", "loss_words.kl"}
    dev = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))["dev"]
    assert list(dev["heads"]) == ["sst"]  # nothing of the other has a label
    assert dev["best"]["value"] == dev["heads"]["sst"]["value"]
    assert transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "words")
    one, two = (
        load_file(tmp_path / "out" / head / "model.safetensors") for head in ("sst", "words")
    )
    weight = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(one[weight], two[weight])


def test_what_such_a_teacher_cannot_be_is_refused(
    plan: Path, corpus: Path, both: Path, masked_lm: Path, classifier: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], match: str, call: Callable[[], object]) -> None:
        with pytest.raises(error, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def built(source: Path, teacher: Path, **options: Any) -> Callable[[], object]:
        return lambda: build(source, teacher=teacher, out=tmp_path / "x", **options)

    refused(
        ConfigError,
        "over a plan for text-classification that is there",
        built(corpus, masked_lm, task=CLASSES, teacher_task=WORDS),
    )
    refused(
        ConfigError,
        "a teacher for text-classification cannot be run over a plan for masked-lm",
        built(plan, classifier, task=WORDS, teacher_task=CLASSES),
    )
    (name,) = open_cache(both).teachers
    options = {"recipe": "kd", "init_from_teacher": "1", "out": tmp_path / "x"}
    refused(
        ConfigError,
        f"losses.kl learns the soft labels of {name}, a teacher for masked-lm .* a head of its own",
        lambda: train(both, overrides=[f'losses.kl.teachers=["{name}"]'], **options),
    )
    pair = {"sst": both, "words": open_cache(both, teacher=name)}
    refused(
        ConfigError,
        "head words learns from a teacher for masked-lm over a plan for text-classification",
        lambda: train(pair, eval_file={"words": corpus}, **options),
    )
    refused(
        ConfigError,
        r"the student learns from .* leave --eval out, .* \(kdcache evaluate OUT FILE\)",
        lambda: train(pair["words"], eval_file=corpus, **options),
    )
    assert over(TASKS[CLASSES], TASKS[CLASSES]) is TASKS[CLASSES]


@pytest.mark.parametrize("wrong", ["chess", ["masked-lm"], "token-classification"])
def test_a_manifest_with_a_task_that_cannot_be_is_damaged(
    words: Cache, tmp_path: Path, wrong: Any
) -> None:
    shutil.copytree(words.path, tmp_path / "c")
    forge_manifest(tmp_path / "c", lambda record: record["teacher"].update(task=wrong))
    with pytest.raises(DamageError, match=r"teacher\.task"):
        open_cache(tmp_path / "c")
