"""The fidelity benchmark: its figures against direct computation, its formats against formulas."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from kdcache.bench.fidelity import Choice, ready, run, stored_bytes
from kdcache.bench.fidelity_formats import formats, from_record
from kdcache.bench.fidelity_measure import compare, divergences, full_gradient, gradient, truth
from kdcache.bench.fidelity_plot import draw
from kdcache.bench.fidelity_sample import Sample, take_sample
from kdcache.building.builder import build
from kdcache.errors import ConfigError
from kdcache.signals import named_arrays, parse
from kdcache.tasks import TASKS
from kdcache_cli.main import main
from tests.activations import activations

CHOICE = Choice(
    logits=(
        "logits:dense,dtype=fp32",
        "logits:topk,k=16",
        "logits:topk-small,k=16",
        "logits:sampled,n=20",
        "logits:hidden-head,dtype=fp16",
    ),
    hidden=("dtype=int4", "dtype=bf16,compress=zstd"),
    ks=(50,),
)


@pytest.fixture(scope="module")
def sample(prose_file: Path, masked_lm: Path) -> Sample:
    """300 rows, a size that blocks do not divide."""
    return take_sample(prose_file, teacher=masked_lm, task="masked-lm", rows=300)


@pytest.fixture(scope="module")
def report(sample: Sample) -> dict[str, Any]:
    return run(sample, CHOICE)


def row_of(report: dict[str, Any], signal: str) -> dict[str, Any]:
    (row,) = [row for row in report["rows"] if row["signal"] == signal]
    return row


def decoded(sample: Sample, text: str) -> Any:
    made: Any = ready(parse(text), sample)[0]
    mask = torch.ones(len(sample.logits), 1, dtype=torch.bool)
    outputs = activations(logits=sample.logits, hidden=[], mask=mask)
    return made.soft(made.encode(outputs), sample.logits.shape[1])


@pytest.mark.parametrize("text", ["logits:topk,k=16", "logits:topk-small,k=16", "logits:dense"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_divergence_is_that_of_the_whole_distributions(
    sample: Sample, text: str, temperature: float
) -> None:
    soft = decoded(sample, text)
    found = divergences(sample, soft, [truth(sample, temperature)])
    exact = log_softmax(sample.logits.double().numpy() / temperature, axis=1)
    spare = exact.shape[1] - soft.ids.shape[1]
    if spare:
        tail = soft.tail_logmass.double().numpy()
        each = (tail - math.log(spare)) / temperature
        if temperature == 2:
            each = soft.tail_stat.double().numpy() - math.log(spare)
        whole = np.repeat(each[:, None], exact.shape[1], axis=1)
    else:
        whole = np.zeros_like(exact)
    np.put_along_axis(whole, soft.ids.numpy(), soft.logprobs.double().numpy() / temperature, 1)
    whole -= logsumexp(whole, axis=1, keepdims=True)
    kl = (np.exp(exact) * (exact - whole)).sum(1)
    name = f"kl_t{temperature:g}"
    assert found[name] == pytest.approx(kl.mean(), abs=1e-6)
    assert found[f"{name}_p99"] == pytest.approx(np.quantile(kl, 0.99), abs=1e-6)


def test_the_full_gradient_is_that_of_autograd(sample: Sample) -> None:
    some = dataclasses.replace(
        sample,
        logits=sample.logits[:70],
        inputs=sample.inputs[:70],
        student=sample.student[:70],
    )
    matrix = torch.zeros(sample.inputs.shape[1], sample.weight.shape[1]).requires_grad_()
    student = some.student + some.inputs @ matrix @ sample.weight.T
    teacher = (some.logits / 2).log_softmax(-1)
    kl = (teacher.exp() * (teacher - (student / 2).log_softmax(-1))).sum(-1).mean()
    (wanted,) = torch.autograd.grad(4 * kl, matrix)
    torch.testing.assert_close(full_gradient(some, 2.0).float(), wanted, rtol=1e-3, atol=1e-6)
    exact = decoded(some, "logits:topk,k=600")
    assert compare(gradient(some, exact, 2.0), full_gradient(some, 2.0))["error"] < 0.01


def test_a_report_has_every_codec_and_none_is_worse_than_it_must_be(
    report: dict[str, Any],
) -> None:
    dense = row_of(report, "logits:dense,dtype=fp32")
    assert dense["kl_t1"] == pytest.approx(0, abs=1e-6)
    assert dense["error"] < 1e-5
    top, small = row_of(report, "logits:topk,k=16"), row_of(report, "logits:topk-small,k=16")
    assert small["bytes_per_row"] < 0.7 * top["bytes_per_row"]
    assert small["kl_t1"] == pytest.approx(top["kl_t1"], abs=1e-3)
    assert row_of(report, "logits:hidden-head,dtype=fp16")["kl_t1"] < 1e-5
    one_token = row_of(report, "logits:topk,k=16, tail as one token")
    assert one_token["error_t2"] > 2 * top["error_t2"]
    drawn = row_of(report, "logits:sampled,n=20")
    assert "kl_t1" not in drawn
    assert 1 <= drawn["distinct_ids"] <= 20
    assert row_of(report, "hidden:dtype=int4")["error"] < 0.1
    first, half = report["sample"]["student_kl"]
    assert half <= first / 2


def test_bytes_are_those_of_a_build(tmp_path: Path, prose_file: Path, masked_lm: Path) -> None:
    text = "logits:topk-small,k=16"
    cache = build(
        prose_file, teacher=masked_lm, task="masked-lm", out=tmp_path / "c", signals=[text]
    )
    raw = {
        n: torch.from_numpy(cache._readers[n][0 : cache.layouts[n].shape[0]]) for n in cache.layouts
    }
    assert cache.plan.parts == 1
    specs = named_arrays(cache.signals, TASKS["masked-lm"], cache.shape)
    assert stored_bytes(specs, raw) == sum(cache.bytes[name] for name in cache.layouts)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("int32 + fp16, k=50", 300),
        ("DistillKit, k=50, exact 1, 3 terms", 2 + 12 + 63),  # 10 bits an id: 500 bits
        ("DistillKit, k=128, exact 16, 6 terms", 32 + 24 + 160),
        ("DistillKit, k=50, exact 1, 3 terms, 8-bit residuals", 2 + 12 + 2 + 16 + 63),
    ],
)
def test_records_take_the_published_bytes(sample: Sample, name: str, size: int) -> None:
    (found,) = [each for each in formats([50]) if each.name == name]
    record = found.keep(sample.logits)
    labels = record.labels
    assert record.size == size
    assert record.file_size is None or record.file_size > 0.5 * size
    total = torch.logaddexp(labels.logprobs.double().logsumexp(1), labels.tail_logmass.double())
    np.testing.assert_allclose(total, 0, atol=1e-5)


def test_a_polynomial_in_the_rank_is_fitted_exactly_where_there_is_one() -> None:
    rank = torch.arange(199.0)  # of those that are fitted: the first is kept as it is
    logits = torch.cat([torch.ones(1), -0.5 - 0.3 * rank.sqrt() - 0.02 * rank]).repeat(3, 1)
    (fit, _) = [each for each in formats([50]) if "k=50, exact 1" in each.name]
    labels = fit.keep(logits).labels
    exact = logits.double().log_softmax(-1)[:, :50]
    np.testing.assert_allclose(labels.logprobs[:, 1:], exact[:, 1:], atol=2e-3)


def test_residual_bins_take_the_error_of_the_first_fitted_values_down(sample: Sample) -> None:
    exact = sample.logits.double().log_softmax(-1).topk(50, 1).values.numpy()
    plain, fine = [each for each in formats([50]) if "k=50, exact 1" in each.name]
    off, less = (
        np.abs(each.keep(sample.logits).labels.logprobs[:, 1:17].numpy() - exact[:, 1:17]).mean()
        for each in (plain, fine)
    )
    assert less < 0.2 * off


def test_draws_in_three_bytes_are_an_estimate_that_sums_to_one(sample: Sample) -> None:
    (found,) = [each for each in formats([50]) if each.name.startswith("SE-KD3X")]
    record = found.keep(sample.logits)
    assert record.size == 192
    live = record.labels.ids >= 0
    np.testing.assert_allclose(record.labels.logprobs.exp().sum(1), 1, atol=1e-5)
    assert (record.labels.logprobs.exp()[live] >= 1 / 127 - 1e-6).all()
    exact = sample.logits.softmax(-1)
    ids = record.labels.ids.clamp(min=0)
    estimate = torch.zeros_like(exact).scatter_add_(1, ids, record.labels.logprobs.exp())
    assert float((estimate.mean(0) - exact.mean(0)).abs().sum()) < 0.25


def test_a_record_that_sums_to_more_than_one_is_scaled_down() -> None:
    labels = from_record(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[-0.1, -0.2]]))
    total = labels.logprobs.double().exp().sum() + labels.tail_logmass.double().exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-6)


def test_a_report_is_json_and_can_be_drawn(report: dict[str, Any], tmp_path: Path) -> None:
    read = json.loads(json.dumps(report, allow_nan=False))
    path = draw(tmp_path / "fidelity.png", [read])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_refused(prose_file: Path, masked_lm: Path) -> None:
    with pytest.raises(ConfigError, match="measures language models"):
        take_sample(prose_file, teacher=masked_lm, task="text-classification", rows=300)
    with pytest.raises(ConfigError, match=r"gives .* rows, not 99,999: ask for fewer"):
        take_sample(prose_file, teacher=masked_lm, task="masked-lm", rows=99_999)


def test_the_command_writes_report_and_plot(
    tmp_path: Path, prose_file: Path, causal_lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdcache.bench import fidelity

    options = ["--teacher", str(causal_lm), "--task", "causal-lm", "--rows", "256", "--quiet"]
    assert main(["bench", "fidelity", str(prose_file), *options, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "fidelity.json").read_text())
    # 32 values do not make a group of 64.
    assert set(report["left_out"]) == {
        "logits:hidden-head,dtype=int8,group=64",
        "hidden:dtype=int8,group=64",
    }
    assert {row["signal"] for row in report["rows"]} > {*fidelity.LOGITS} - {*report["left_out"]}
    assert "logits:topk,k=64" in shown
    assert json.loads((tmp_path / "fidelity.json").read_text())["benchmark"] == "fidelity"
    assert (tmp_path / "fidelity.png").is_file()
