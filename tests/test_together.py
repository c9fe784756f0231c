"""Students trained together: each as it would be alone, but for what it learns from the others."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import kdcache
from kdcache.errors import ConfigError
from kdcache.models.module_student import WEIGHTS
from kdcache.store import Cache
from kdcache.students import BiLSTM, StaticEmbeddings, Together
from kdcache.training.recipe import load_recipe
from kdcache_cli.main import main
from tests.conftest import bert_config
from tests.test_module_students import QUICK, steps
from tests.test_stages import At
from tests.test_trainer import Watcher, assert_same_weights, log_of

MUTUAL = "losses.mutual.weight=1"


def student(seed: int, **settings: Any) -> StaticEmbeddings:
    torch.manual_seed(seed)
    sizes = {"vocabulary": 600, "outputs": 3, "embedding": 8, "dense": 8, "dropout": 0.0}
    return StaticEmbeddings(**{**sizes, **settings})


def train(cache: Cache, out: Path, one: nn.Module, *overrides: str, **more: Any) -> Path:
    wanted = [*steps(6), "training.max_grad_norm=0", *overrides]
    return kdcache.train(
        cache, recipe="kd", student=one, out=out, overrides=wanted, **QUICK, **more
    ).folder


def test_without_a_word_between_them_students_are_what_they_are_alone(
    cache: Cache, tmp_path: Path
) -> None:
    both = train(cache, tmp_path / "both", Together([student(1), student(2, dense=12)]))
    for number, alone in ((1, student(1)), (2, student(2, dense=12))):
        folder = train(cache, tmp_path / f"alone-{number}", alone)
        assert_same_weights(both / f"student-{number}", folder)


def test_students_learn_from_each_other_and_go_to_folders_of_their_own(
    cache: Cache, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """One of kdcache's and one of transformers'."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertForSequenceClassification(bert_config(tokenizer, num_labels=3, **sizes))
    pair = Together([student(1), bert])
    folder = train(cache, tmp_path / "out", pair, MUTUAL, *steps(32))
    log = log_of(folder)
    assert log[-1]["loss_mutual"] > 0
    assert log[-1]["loss_kl"] < log[0]["loss_kl"]
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    for number, one in enumerate(pair.students, 1):
        home = folder / f"student-{number}"
        scores = kdcache.evaluate(home, corpus, device="cpu")
        count = sum(parameter.numel() for parameter in one.parameters())
        assert scores["documents"] == 240
        assert scores["parameters"] == metrics["students"][home.name]["parameters"] == count
        assert f"{count:,}; the teacher has" in (home / "README.md").read_text("utf-8")
    apart = train(cache, tmp_path / "apart", Together([student(1), student(2)]))
    near = train(cache, tmp_path / "near", Together([student(1), student(2)]), MUTUAL)
    with pytest.raises(AssertionError):
        assert_same_weights(apart / "student-1", near / "student-1")


def test_a_recipe_may_name_students_that_are_trained_together(cache: Cache, tmp_path: Path) -> None:
    sizes = "embedding=8,dense=8"
    both = f'student.together=["static:{sizes}", "bilstm:{sizes},hidden=4"]'
    command = f"train {cache.path} --recipe kd --out {tmp_path / 'out'} --device cpu --quiet"
    settings = [both, MUTUAL, *steps(2)]
    assert main([*command.split(), *(word for s in settings for word in ("--set", s))]) == 0
    kinds = {1: StaticEmbeddings, 2: BiLSTM}
    for number, kind in kinds.items():
        home = tmp_path / "out" / f"student-{number}"
        assert type(kdcache.open_student(home)) is kind
        assert "trained together: static" in (home / "README.md").read_text("utf-8")
    for wrong in ('["static"]', "static", "[1, 2]"):
        with pytest.raises(ConfigError, match="a list of two students or more"):
            load_recipe("kd", [f"student.together={wrong}"])


def test_parameters_of_students_that_are_trained_together_go_by_their_place(
    cache: Cache, tmp_path: Path
) -> None:
    def run(name: str, *trainable: str) -> Path:
        both = 'student.together=["static:embedding=8,dense=8", "static:embedding=8,dense=8"]'
        overrides = [
            both,
            "training.max_grad_norm=0",
            *steps(2),
            *(f"trainable=['{glob}']" for glob in trainable),
        ]
        out = tmp_path / name
        return kdcache.train(cache, recipe="kd", out=out, overrides=overrides, **QUICK).folder

    moved, still = run("all"), run("second", "members.1.*")
    assert_same_weights(moved / "student-2", still / "student-2")
    with pytest.raises(AssertionError):
        assert_same_weights(moved / "student-1", still / "student-1")
    with pytest.raises(ConfigError, match=r"'member.1.\*'; did you mean 'members\.0\."):
        run("wrong", "member.1.*")
    with pytest.raises(
        ConfigError, match=r"'dense.*'; did you mean 'members\.0\..*such as 'members\.1\."
    ):
        run("wrong", "dense.*")


def test_a_resumed_run_of_several_equals_the_unbroken_one(cache: Cache, tmp_path: Path) -> None:
    def run(name: str, **more: Any) -> Path:
        both = Together([student(1, dropout=0.1), student(2)])
        return train(cache, tmp_path / name, both, MUTUAL, **more)

    whole = run("whole")
    stopped = Watcher({3: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(KeyboardInterrupt):
        run("broken", progress=stopped)
    resumed = run("broken", resume=True)
    for name in ("student-1", "student-2"):
        assert_same_weights(whole / name, resumed / name)


STAGES = """
[training]
learning_rate = 1e-2
max_steps = 3
logging_steps = 1
per_device_train_batch_size = 16

[[stages]]
name = "apart"
[stages.losses.kl]

[[stages]]
name = "near"
[stages.losses.kl]
[stages.losses.mutual]
"""


@pytest.mark.slow
def test_students_go_through_stages_together_and_a_run_that_died_between_them_goes_on(
    cache: Cache, tmp_path: Path
) -> None:
    (tmp_path / "two.toml").write_text(STAGES, "utf-8")

    def run(name: str, **more: Any) -> Path:
        both = Together([student(1, dropout=0.1), student(2)])
        options = {"recipe": tmp_path / "two.toml", "device": "cpu", **more}
        return kdcache.train(cache, student=both, out=tmp_path / name, **options).folder

    def die() -> None:
        raise RuntimeError("stopped")

    whole = run("whole")
    assert [entry["stage"] for entry in log_of(whole)] == ["apart"] * 3 + ["near"] * 3
    assert [("loss_mutual" in entry) for entry in log_of(whole)] == [False] * 3 + [True] * 3
    for name in ("student-1", "student-2"):
        first, last = (load_file(f / name / WEIGHTS) for f in (whole / "stages" / "apart", whole))
        assert not any(torch.equal(first[key], last[key]) for key in first)
    with pytest.raises(RuntimeError, match="stopped"):
        run("broken", progress=At("near", 1, die))
    again = At()
    resumed = run("broken", resume=True, progress=again)
    assert [label.rpartition(" ")[2] for label in again.labels] == ["near"]
    for name in ("student-1", "student-2"):
        assert_same_weights(whole / name, resumed / name)


def test_what_cannot_be_together_is_refused(cache: Cache, corpus: Path, tmp_path: Path) -> None:
    one = student(1)
    for students in ([one], [], [one, "static"], [one, one]):
        with pytest.raises(ConfigError, match=r"two modules or more|there twice"):
            Together(students)  # type: ignore[arg-type]  # wrong on purpose

    def refused(message: str, both: nn.Module, *overrides: str, **more: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            train(cache, tmp_path / "out", both, *overrides, **more)
        assert not (tmp_path / "out").exists()

    both = Together([one, student(2)])
    refused("losses.mutual lets several students learn from each other", one, MUTUAL)
    refused("--eval scores one student, and 2 are trained together", both, eval_file=corpus)
    refused("--dev scores one student, and 2 are trained together", both, dev_split="10%")
    hidden = ("losses.hidden.layer_map=0:0",)
    refused("the student gives none", both, *hidden)
