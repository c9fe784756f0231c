"""Ids drawn from the tail of a top-k cache: all of the teacher's distribution, without bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.special import softmax

from kdcache.building.builder import build
from kdcache.errors import ConfigError
from kdcache.losses import CacheSpec, SoftKL, soft_and_hard
from kdcache.losses.binding import bind
from kdcache.maintenance.exporting import export
from kdcache.maintenance.verifying import verify
from kdcache.signals import ModelSizes, SmallTopK, SoftLabels, TopKLogits, parse
from kdcache.signals.codecs.vocabulary import by_frequency
from kdcache.tasks import TASKS
from kdcache.training.train import train
from kdcache_kernels import topk_kl
from tests.activations import activations

CODECS = ("topk", "topk-small")
Codec = TopKLogits | SmallTopK


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    text: str = request.param
    return text


def signal(codec: str, classes: int, **options: int) -> Codec:
    if codec == "topk":
        return TopKLogits(**options)
    counts = np.random.default_rng(5).integers(0, 9, classes)
    return SmallTopK(vocabulary=by_frequency(counts, classes), **options)


def rows_of(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, classes, generator=generator)


def decoded(of: Codec, logits: torch.Tensor) -> SoftLabels:
    outputs = activations(
        logits=logits, hidden=[], mask=torch.ones(len(logits), 1, dtype=torch.bool)
    )
    encoded = of.encode(outputs)
    shape = ModelSizes(outputs=logits.shape[1], hidden=8, layers=1)
    for spec in of.arrays(TASKS["masked-lm"], shape):
        assert encoded[spec.name].shape[1:] == spec.row_shape
        assert str(encoded[spec.name].numpy().dtype) == spec.dtype
    assert set(encoded) == {spec.name for spec in of.arrays(TASKS["masked-lm"], shape)}
    return of.soft(encoded, logits.shape[1])


def dense(soft: SoftLabels, classes: int) -> np.ndarray[Any, Any]:
    """The distribution that labels stand for, by a loop; every id may come once."""
    found = np.zeros((len(soft.ids), classes))
    for row, (ids, logprobs) in enumerate(zip(soft.ids, soft.logprobs, strict=True)):
        for token, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True):
            if token >= 0:
                assert found[row, token] == 0
                found[row, token] = np.exp(logprob)
    return found


@pytest.mark.parametrize(("classes", "k", "n"), [(600, 16, 8), (600, 599, 5), (70_000, 9, 30)])
def test_the_k_stay_as_they_are_and_the_draws_share_the_tails_mass(
    codec: str, classes: int, k: int, n: int
) -> None:
    logits = rows_of(7, classes)
    soft = decoded(signal(codec, classes, k=k, draws=n), logits)
    plain = decoded(signal(codec, classes, k=k), logits)
    assert plain.drawn is None
    assert torch.equal(soft.ids, plain.ids)
    assert torch.equal(soft.logprobs, plain.logprobs)
    whole = soft.with_drawn()
    assert whole.ids.shape[1] == k + min(n, classes - k)
    shares = dense(whole, classes)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-3)
    np.put_along_axis(shares, soft.ids.numpy(), 0, axis=1)
    assert soft.tail_logmass is not None
    each = shares * n / soft.tail_logmass.double().exp().numpy()[:, None]
    np.testing.assert_allclose(each, np.round(each), atol=1e-3)


def test_draws_are_unbiased(codec: str) -> None:
    rows, classes = 6000, 30
    # A constant changes the bits that the draws depend on, and no probability.
    logits = rows_of(1, classes) + torch.arange(rows)[:, None] / 4096
    truth = softmax(logits[0].double().numpy())
    found = dense(decoded(signal(codec, classes, k=4, draws=3), logits).with_drawn(), classes)
    tail = np.argsort(-truth)[4:]  # the rest is codes, the same in every row
    error = np.sqrt(truth * (1 - truth) / (3 * rows))
    assert (np.abs(found.mean(0) - truth) <= 5 * error + 1e-3 * truth)[tail].all()


def test_the_gradient_is_that_of_the_estimate(codec: str) -> None:
    logits, student = rows_of(5, 80), rows_of(5, 80, seed=1).requires_grad_()
    soft = decoded(signal(codec, 80, k=6, draws=9), logits)
    soft_and_hard(student, soft, temperature=1.0, tail="drawn")[0].backward()
    target = dense(soft.with_drawn(), 80)
    wanted = softmax(student.detach().double().numpy(), axis=1) - target / target.sum(1)[:, None]
    assert student.grad is not None
    np.testing.assert_allclose(student.grad, wanted / 5, atol=1e-6)
    bucket = rows_of(5, 80, seed=1).requires_grad_()
    soft_and_hard(bucket, soft, temperature=1.0)[0].backward()
    other = rows_of(5, 80, seed=1).requires_grad_()
    topk_kl(other, soft.ids, soft.logprobs, tail_logmass=soft.tail_logmass).backward()
    assert bucket.grad is not None
    assert other.grad is not None
    assert torch.equal(bucket.grad, other.grad)


def test_nothing_is_drawn_from_a_tail_without_mass(codec: str) -> None:
    logits = torch.full((3, 50), -torch.inf)
    logits[:, 7], logits[:, 49] = 0.0, 1.0
    logits[2] = rows_of(1, 50)
    soft = decoded(signal(codec, 50, k=2, draws=4), logits)
    assert soft.drawn is not None
    assert (soft.drawn[:2] == -1).all()
    assert (soft.drawn[2] >= 0).any()
    student = rows_of(3, 50).requires_grad_()
    loss = soft_and_hard(student, soft, temperature=1.0, tail="drawn")[0]
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("draws", [-1, 65_537])
def test_a_number_of_draws_that_cannot_be_is_refused(codec: str, draws: int) -> None:
    with pytest.raises(ConfigError, match=rf"draws of logits:{codec} must lie in .* got {draws}"):
        parse(f"logits:{codec},k=4,draws={draws}")


def test_a_cache_of_all_classes_has_nothing_to_draw_from(codec: str) -> None:
    shape = ModelSizes(outputs=40, hidden=8, layers=1)
    with pytest.raises(ConfigError, match=r"k=40,draws=3: k is all the outputs .* leave draws out"):
        signal(codec, 40, k=40, draws=3).check(TASKS["masked-lm"], shape)


def test_settings_without_draws_are_those_of_earlier_versions(codec: str) -> None:
    assert "draws" not in signal(codec, 40, k=4).to_json()
    assert signal(codec, 40, k=4, draws=2).to_json()["draws"] == 2


@pytest.mark.parametrize(
    ("draws", "loss", "message"),
    [
        (0, SoftKL(tail="drawn"), r"build one with --signal logits:{codec},k=8,draws=16, or set"),
        (16, SoftKL(tail="drawn", temperature=2.0), r"at temperature 1; got 2\. Set losses\.kl"),
    ],
)
def test_losses_that_cannot_be_served_are_refused(
    codec: str, draws: int, loss: SoftKL, message: str
) -> None:
    known = signal(codec, 600, k=8, draws=draws)
    shape = ModelSizes(outputs=600, hidden=8, layers=1)
    spec = CacheSpec(
        task=TASKS["masked-lm"],
        label_kind="tokens",
        signals={"logits": known},
        shape=shape,
        labelled=1,
    )
    bind("kl", SoftKL(tail="bucket", temperature=2.0), spec, shape)
    with pytest.raises(ConfigError, match=message.format(codec=codec)):
        bind("kl", loss, spec, shape)


def test_a_student_is_trained_on_what_was_drawn(
    codec: str, tmp_path: Path, prose_file: Path, masked_lm: Path
) -> None:
    cache = build(
        prose_file,
        teacher=masked_lm,
        task=TASKS["masked-lm"],
        out=tmp_path / "cache",
        signals=[f"logits:{codec},k=16,draws=8"],
        max_length=48,
        limit=60,
    )
    assert verify(cache.path, full=True) == []
    assert "draws=8" in repr(cache)
    chosen = ["losses.kl.tail=drawn", "losses.kl.temperature=1"]
    short = ["training.max_steps=2", "training.logging_steps=1"]
    result = train(
        cache,
        recipe="mlm-kd",
        out=tmp_path / "student",
        init_from_teacher=(2, 4),
        overrides=[*chosen, *short],
    )
    assert 0 < result.metrics["losses"]["loss_kl"] < 10
    export(cache, tmp_path / "out")
    columns = load_file(tmp_path / "out" / "part-000000.safetensors")
    drawn, logprobs = columns["logits.drawn"], columns["logits.drawn_logprobs"]
    assert drawn.shape == logprobs.shape == (cache.plan.selected, 8)
    assert ((drawn >= 0) == (logprobs > -np.inf)).all()
