"""AD-KD from a real cache: it trains, in micro-batches too, and says what it lacks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcache
from kdcache.building.builder import estimate
from kdcache.building.describe import describe_bytes
from kdcache.errors import ConfigError
from kdcache.signals import ModelSizes, parse_all
from kdcache.store import Cache
from kdcache.tasks import TASKS
from tests.conftest import write_csv
from tests.test_trainer import log_of

QUICK = ("training.logging_steps=1", "training.save_strategy=no", "training.learning_rate=1e-3")


@pytest.fixture(scope="module")
def attributed(corpus: Path, classifier: Path, folder: Path) -> Cache:
    """Soft labels and the attributions of each of three classes."""
    return kdcache.build(
        corpus,
        teacher=classifier,
        task="text-classification",
        out=folder / "attributed.zarr",
        signals=["logits:dense", "attribution:views=all"],
        max_length=24,
        limit=64,
        progress=False,
    )


def train(cache: Cache, out: Path, steps: int, **options: Any) -> Any:
    more = [f"training.{name}={value}" for name, value in options.items()]
    return kdcache.train(
        cache,
        recipe="ad-kd",
        out=out,
        init_from_teacher=[1, 3],
        overrides=[*QUICK, *more, f"training.max_steps={steps}", "losses.attribution.weight=10"],
        device="cpu",
        progress=False,
    )


@pytest.mark.slow
def test_a_student_comes_to_attribute_as_its_teacher(attributed: Cache, tmp_path: Path) -> None:
    train(attributed, tmp_path / "out", 16, per_device_train_batch_size=64)
    found = [row for row in log_of(tmp_path / "out") if "loss_attribution" in row]
    assert found[-1]["loss_attribution"] < 0.9 * found[0]["loss_attribution"]
    assert 0 < found[0]["gradient_attribution"] < 1


def test_micro_batches_are_a_step(attributed: Cache, tmp_path: Path) -> None:
    first = []
    for place, (size, parts) in enumerate([(16, 1), (4, 4)]):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        train(attributed, tmp_path / str(place), 1, **options)
        first.append(log_of(tmp_path / str(place))[0]["loss_attribution"])
    assert first[0] == pytest.approx(first[1], rel=0.2)  # dropout is on, and drawn for each part


def test_stored_attributions_are_of_length_one_and_true(attributed: Cache) -> None:
    docs = attributed.plan.docs[:1]
    tap = next(iter(attributed.signals["attribution"].gives()))
    rows = attributed.stored(docs, tap, "attribution").dense()
    torch.testing.assert_close(rows.square().sum(0), torch.ones(3), rtol=1e-3, atol=1e-3)
    assert attributed.fidelity["attribution"]["relative_error"] < 5e-4


def test_what_a_cache_or_student_lacks_is_said_before_anything_runs(
    attributed: Cache, tmp_path: Path
) -> None:
    where = {"out": tmp_path / "out", "progress": False}
    four = ["losses.attribution.ig_steps=4"]
    with pytest.raises(ConfigError, match=r"ig_steps=4; the cache .*ig_steps=1, or build a cache"):
        kdcache.train(attributed, recipe="ad-kd", init_from_teacher=[1, 3], overrides=four, **where)
    with pytest.raises(ConfigError, match="gives no embeddings: it declares logits, hidden"):
        kdcache.train(attributed, recipe="ad-kd", student="bilstm", **where)
    for signal in ("attribution", "jacobian"):
        with pytest.raises(ConfigError, match=f"{signal} is a gradient of what a classifier says"):
            parse_all(signal)[signal].check(
                TASKS["masked-lm"], ModelSizes(outputs=9, hidden=8, layers=1)
            )


def test_a_plan_says_about_how_many_forwards_gradients_take(attributed: Cache) -> None:
    texts = ["attribution:views=one", "all=attribution:views=all", "jacobian", "logits:dense"]
    shape = ModelSizes(outputs=2, hidden=32, layers=4)
    found = describe_bytes(attributed.plan, parse_all(texts), shape)["forwards"]
    assert found == {"attribution": 1.9, "all": 2.5, "jacobian": 2.5}


def test_documents_without_a_label_are_refused_before_the_teacher_is_loaded(
    classifier: Path, tmp_path: Path
) -> None:
    shutil.copytree(classifier, tmp_path / "t", ignore=shutil.ignore_patterns("*.safetensors"))
    file = write_csv(tmp_path / "some.csv", [("a class", "email"), ("a module", "")])
    options: dict[str, Any] = {"teacher": tmp_path / "t", "task": "text-classification"}
    views = {"signals": ["attribution:views=one"]}
    match = "1 of 2 have none: take views=all, or leave those documents out"
    with pytest.raises(ConfigError, match=match):
        kdcache.build(file, out=tmp_path / "x", **views, **options)
    with pytest.raises(ConfigError, match=match):
        estimate(file, **views, **options)
    assert not (tmp_path / "x").exists()


def test_a_static_student_learns_from_attributions(attributed: Cache, tmp_path: Path) -> None:
    kdcache.train(
        attributed,
        recipe="ad-kd",
        student="static:embedding=16,dense=16",
        out=tmp_path / "static",
        overrides=[*QUICK, "training.max_steps=2"],
        device="cpu",
        progress=False,
    )
    assert log_of(tmp_path / "static")[0]["loss_attribution"] > 0
