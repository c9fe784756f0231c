"""`masked-lm-all`: what a masked language model says of every token of masked texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import kdcache
from kdcache.errors import ConfigError
from kdcache.inputs.binding import words_of
from kdcache.inputs.smooth import Smooth
from kdcache.store import Cache
from kdcache.tasks import IGNORE_INDEX
from kdcache.training.specs import cache_spec

WEIGHTS = "model.safetensors"
SIGNALS = ["logits:dense", "hidden:layers=4,positions=all,dtype=fp32"]


@pytest.fixture(scope="module")
def caches(
    tmp_path_factory: pytest.TempPathFactory, prose_file: Path, masked_lm: Path
) -> tuple[Cache, Cache]:
    """Of masked positions, and of all, from one plan but for the task."""
    folder = tmp_path_factory.mktemp("all")
    options: dict[str, Any] = {"signals": SIGNALS, "max_length": 48, "limit": 30, "views": 2}
    made = (
        kdcache.build(prose_file, teacher=masked_lm, task=task, out=folder / task, **options)
        for task in ("masked-lm", "masked-lm-all")
    )
    return next(made), next(made)


def test_every_token_has_the_soft_labels_of_the_masked_text(
    caches: tuple[Cache, Cache], masked_lm: Path
) -> None:
    docs = caches[1].plan.docs[:6]
    batch = caches[1].batch(docs)
    model = transformers.AutoModelForMaskedLM.from_pretrained(masked_lm).eval()
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        said = model(**{name: batch[name] for name in names}).logits[batch.mask]
    torch.testing.assert_close(caches[1].soft_labels(docs).values, said, atol=1e-4, rtol=1e-4)


def test_masked_tokens_alone_have_labels_and_are_those_of_masked_lm(
    caches: tuple[Cache, Cache],
) -> None:
    some, every = caches
    docs = some.plan.docs
    np.testing.assert_array_equal(docs, every.plan.docs)
    ours, theirs = every.batch(docs), some.batch(docs)
    torch.testing.assert_close(ours["input_ids"], theirs["input_ids"])
    flat = torch.full(ours.mask.shape, IGNORE_INDEX).flatten()
    flat[theirs["selected"]] = theirs["labels"]
    torch.testing.assert_close(ours["labels"], flat[ours.mask.flatten()])
    assert ours.labelled == theirs.labelled == every.plan.selected
    at = (ours.mask.flatten().cumsum(0) - 1)[theirs["selected"]]
    found, wanted = (cache.soft_labels(docs).values for cache in (every, some))
    torch.testing.assert_close(found[at], wanted, atol=1e-5, rtol=1e-5)


class Stop(transformers.TrainerCallback):
    """Stops a training before its third step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_distilbert_learns_from_all_tokens_and_resumes(
    caches: tuple[Cache, Cache], tmp_path: Path
) -> None:
    steps = [f"training.{name}=1" for name in ("logging_steps", "save_steps")]
    steps += ["training.save_strategy=steps", "training.max_steps=4"]
    asked: dict[str, Any] = {
        "recipe": "distilbert", "init_from_teacher": (2, 4), "overrides": steps, "device": "cpu",
        "seed": 1, "progress": False, "batch_size": 4,
    }  # fmt: skip
    first = {}
    for cache in caches:
        name = cache.plan.task.name
        whole = kdcache.train(cache, out=tmp_path / name, **asked).folder
        first[name] = json.loads((whole / "training_log.json").read_text("utf-8"))[0]
    with pytest.raises(KeyboardInterrupt):
        kdcache.train(caches[1], out=tmp_path / "again", callbacks=[Stop()], **asked)
    again = kdcache.train(caches[1], out=tmp_path / "again", resume=True, **asked).folder
    assert (again / WEIGHTS).read_bytes() == (tmp_path / "masked-lm-all" / WEIGHTS).read_bytes()
    some, every = first["masked-lm"], first["masked-lm-all"]
    for name in ("loss_hard", "loss_cosine"):  # of masked tokens, and of hidden states of all
        assert some[name] == pytest.approx(every[name], rel=1e-4)
    assert some["loss_kl"] != pytest.approx(every["loss_kl"], rel=1e-3)


def test_a_student_is_scored_by_the_task_it_was_trained_for(
    caches: tuple[Cache, Cache], prose_file: Path, masked_lm: Path, tmp_path: Path
) -> None:
    for cache in caches:
        out = kdcache.train(
            cache, recipe="mlm-kd", out=tmp_path / cache.path.name, init_from_teacher=(2, 4),
            overrides=["training.max_steps=1"], device="cpu", progress=False,
        ).folder  # fmt: skip
        scores = kdcache.evaluate(out, prose_file, limit=12, cache=cache, progress=False)
        assert scores["task"] == cache.plan.task.name
        assert scores["teacher_rows"]["documents"] > 0
    own = kdcache.evaluate(masked_lm, prose_file, limit=12, cache=caches[1], progress=False)
    assert own["teacher_rows"]["agreement"] == 1  # the teacher itself, of which no note tells
    other = caches[0]
    with pytest.raises(ConfigError, match=r"is for masked-lm-all; the cache .* is for masked-lm$"):
        kdcache.evaluate(out, prose_file, limit=12, cache=other, progress=False)


def test_words_of_masked_texts_are_none_to_smooth_by(caches: tuple[Cache, Cache]) -> None:
    spec = cache_spec(caches[1], 0)
    with pytest.raises(ConfigError, match="of the task masked-lm-all those are what it has to say"):
        words_of(Smooth(), spec)
