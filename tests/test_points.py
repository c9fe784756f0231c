"""A second round of caching: documents at points where a student and its teacher differ more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcache
from kdcache.errors import ConfigError, MismatchError, ModelError
from kdcache.models import load_teacher, run
from kdcache.models.points import POINTS
from kdcache.plans.batch import Batch
from kdcache.signals import EMBEDDINGS, LOGITS
from kdcache.store import Cache
from kdcache.training.train import train
from tests.conftest import write_csv
from tests.test_trainer import log_of, narrow

__all__ = ["narrow"]  # fixtures

TASK = "text-classification"
SHORT = ("training.max_steps=4", "training.logging_steps=1", "training.learning_rate=1e-3")


@pytest.fixture(scope="module")
def student(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two of the teacher's layers, and its embeddings."""
    out = tmp_path_factory.mktemp("student") / "student"
    return train(cache, out=out, init_from_teacher=[2, 4], overrides=SHORT).folder


@pytest.fixture(scope="module")
def points(
    cache: Cache, student: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Cache:
    """The session's cache at points of that student."""
    out = tmp_path_factory.mktemp("points") / "points.zarr"
    return kdcache.ascend(cache, student=student, teacher=classifier, out=out, eta=0.5)


def read_at(batch: Batch, states: torch.Tensor) -> Batch:
    return batch.beside(**{POINTS: states})


def test_a_model_that_reads_its_own_embedding_output_as_points_says_the_same(
    cache: Cache, classifier: Path
) -> None:
    model = load_teacher(classifier, task=TASK).model
    batch = cache.batch(cache.plan.docs[:5])
    plain = run(model, batch, [LOGITS, EMBEDDINGS], task=TASK)
    states = plain[EMBEDDINGS].detach().masked_fill(~batch.mask[..., None], torch.nan)
    states.requires_grad_()
    again = run(model, read_at(batch, states), [LOGITS], task=TASK)[LOGITS]
    assert torch.equal(again, plain[LOGITS])
    (gradient,) = torch.autograd.grad(again.sum(), states)
    assert (gradient[~batch.mask] == 0).all()
    assert (gradient[batch.mask] != 0).any(1).all()
    model.bert.encoder.layer = torch.nn.Sequential(*model.bert.encoder.layer)
    with pytest.raises(ModelError, match="has no list of blocks"):
        run(model, read_at(batch, states), [LOGITS], task=TASK)


def test_points_lie_up_the_gradient_and_the_teacher_says_what_it_says_there(
    cache: Cache, points: Cache, student: Path, classifier: Path
) -> None:
    teacher, pupil = (load_teacher(one, task=TASK).model for one in (classifier, student))
    docs = cache.plan.docs[:6]
    assert points.plan.sha256 == cache.plan.sha256
    batch = cache.batch(docs, [])
    states = run(pupil, batch, [EMBEDDINGS], task=TASK)[EMBEDDINGS].detach().requires_grad_()

    def apart(at: Batch) -> torch.Tensor:
        ours, theirs = (run(m, at, [LOGITS], task=TASK)[LOGITS] for m in (pupil, teacher))
        return (ours - theirs).square().sum()

    (gradient,) = torch.autograd.grad(apart(read_at(batch, states)), states)
    moved = (states + 0.5 * gradient).detach()
    stored = points.stored(docs, EMBEDDINGS).dense()
    torch.testing.assert_close(stored, moved[batch.mask], rtol=1e-3, atol=1e-3)
    there = read_at(batch, moved)
    says = run(teacher, there, [LOGITS], task=TASK)[LOGITS]
    kept = points.stored(docs, LOGITS).values
    torch.testing.assert_close(kept, says.detach(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert apart(there) > apart(batch)


def test_a_student_learns_at_texts_and_at_points(
    cache: Cache, points: Cache, student: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"recipe": "backward-kd", "student": student, "batch_size": 60}
    result = train([cache, points], out=tmp_path / "on", epochs=1, **options)
    assert result.metrics["steps"] == 8
    alone = train(points, out=tmp_path / "alone", overrides=SHORT, **options)
    texts = train(cache, out=tmp_path / "texts", overrides=SHORT, **options | {"recipe": "kd-mse"})
    tested = write_csv(tmp_path / "tested.csv", [(f"a text {i}", "email") for i in range(8)])
    more: dict[str, Any] = {"dev_split": "10%", "eval_file": tested, "overrides": SHORT}
    scored = train(points, out=tmp_path / "scored", **more, **options).metrics
    assert scored["evaluation"]["documents"] == 8
    assert "agreement" not in scored["evaluation"]
    assert scored["dev"].get("teacher") is None
    first = [log_of(run.folder)[0]["loss_logit_mse"] for run in (alone, texts)]
    assert first[0] > first[1]


def test_what_no_points_are_of_is_refused(
    cache: Cache,
    points: Cache,
    student: Path,
    classifier: Path,
    masked_cache: Cache,
    masked_lm: Path,
    narrow: str,
    corpus: Path,
    tmp_path: Path,
) -> None:
    def refused(error: type[Exception], match: str, source: Cache = cache, **changes: Any) -> None:
        options = {"student": student, "teacher": classifier, **changes}
        with pytest.raises(error, match=match):
            kdcache.ascend(source, out=tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()

    refused(ConfigError, "eta must be more than 0", eta=0.0)
    refused(ConfigError, "steps must be 1 or more", steps=0)
    refused(ConfigError, "the task is masked-lm", masked_cache, teacher=masked_lm)
    refused(MismatchError, "are not those of the teacher of", teacher=student)
    small = train(cache, out=tmp_path / "small", config=narrow, overrides=SHORT).folder
    refused(ConfigError, "has hidden=16 where that has 32", student=small)
    with pytest.raises(ConfigError, match=r"holds points of width 32, .* got the student of 16"):
        train(points, out=tmp_path / "y", config=narrow)
    with pytest.raises(MismatchError):
        kdcache.ascend(cache, student=student, teacher=classifier, out=points.path, eta=0.25)
    for compared in (
        lambda: kdcache.evaluate(student, corpus, cache=points),
        lambda: kdcache.compare(student, cache=points),
    ):
        with pytest.raises(ConfigError, match="holds what its teacher says at points"):
            compared()
    assert np.isfinite(points.stored(points.plan.docs[:2], LOGITS).values.numpy()).all()


def test_teachers_that_were_run_at_other_points_are_not_learned_from_at_once(
    cache: Cache, points: Cache, student: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"recipe": "kd-mse", "student": student}
    for name, both in (("one", [cache, points]), ("two", [points, cache])):
        kdcache.merge([one.path for one in both], tmp_path / name)
        merged = kdcache.open_cache(tmp_path / name)
        teachers = ", ".join(f'"{one}"' for one in merged.views)
        more = [f"losses.logit_mse.teachers=[{teachers}]", 'losses.logit_mse.choose="all"']
        with pytest.raises(ConfigError, match="was run at points: a student"):
            train(merged, out=tmp_path / "x", overrides=[*SHORT, *more], **options)
        train(merged, out=tmp_path / f"{name}-first", overrides=SHORT, **options)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("field", ["gradient_checkpointing", "torch_compile"])
def test_what_may_run_the_first_block_without_its_points_is_refused(
    field: str, points: Cache, student: Path, tmp_path: Path
) -> None:
    more = [*SHORT, f"training.{field}=true"]
    with pytest.raises(ConfigError, match=f"does not go with training.{field}"):
        train(points, recipe="backward-kd", student=student, out=tmp_path / "x", overrides=more)
