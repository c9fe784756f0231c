"""Our ops against the losses of others, in float64, where those are right."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdcache.bench import rivals
from kdcache.bench import rivals_lean as lean
from kdcache.bench.kernels_inputs import (
    Formula,
    Size,
    Tensors,
    draw_hidden,
    draw_linear,
    draw_soft,
    draw_states,
)
from kdcache_kernels import (
    dequantize_rows,
    hidden_mse,
    linear_kl,
    linear_topk_kl,
    quantize_rows,
    topk_encode,
    topk_kl,
)

CPU = torch.device("cpu")
SIZE = Size(rows=7, vocab=211, k=9, hidden=24)
temperatures = pytest.mark.parametrize("temperature", [1.0, 2.0])


def double(x: Tensors) -> Tensors:
    return {k: v.double() if v.is_floating_point() else v for k, v in x.items()}


def soft(temperature: float, size: Size = SIZE) -> Tensors:
    return double(draw_soft(size, torch.float32, CPU, True, temperature=temperature))


def linear() -> Tensors:
    return double(draw_linear(SIZE, torch.float32, CPU, True, temperature=1.0))


def value_and_gradients(formula: Formula, x: Tensors, *leaves: str) -> tuple[torch.Tensor, ...]:
    y = {**x, **{name: x[name].detach().requires_grad_() for name in leaves}}
    loss = formula(y)
    assert isinstance(loss, torch.Tensor)
    return (loss.detach(), *torch.autograd.grad(loss, [y[name] for name in leaves]))


def assert_same(ours: Formula, theirs: Formula, x: Tensors, *leaves: str, tol: float) -> None:
    """Value and every gradient, apart: a factor on one of them only is a known fault."""
    got, want = (value_and_gradients(f, x, *leaves) for f in (ours, theirs))
    for mine, true in zip(got, want, strict=True):
        assert (mine - true).abs().max() <= tol * true.abs().max()


def our_topk_kl(x: Tensors, **options: Any) -> torch.Tensor:
    tail = {name: x[name] for name in ("tail_logmass", "tail_stat")}
    loss: torch.Tensor = topk_kl(x["logits"], x["ids"], x["logprobs"], **tail, **options)
    return loss


# What the teacher's tail holds comes from float32, so the two ways to it differ by its rounding.
@temperatures
@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_bucket_is_trl_with_a_tail(temperature: float, hard: float) -> None:
    x = soft(temperature)
    ours = partial(our_topk_kl, temperature=temperature, labels=x["labels"], hard_weight=hard)
    theirs = partial(rivals.trl, temperature=temperature, hard_weight=hard)
    assert_same(ours, theirs, x, "logits", tol=2e-6)


@temperatures
def test_bucket_is_the_plain_formula(temperature: float) -> None:
    ours = partial(our_topk_kl, temperature=temperature)
    theirs = partial(rivals.bucket, temperature=temperature)
    assert_same(ours, theirs, soft(temperature), "logits", tol=1e-12)


@temperatures
@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_renormalize_is_axolotl(temperature: float, hard: float) -> None:
    x = soft(temperature)
    ours = partial(
        our_topk_kl,
        temperature=temperature,
        tail="renormalize",
        labels=x["labels"],
        hard_weight=hard,
    )
    theirs = partial(rivals.axolotl, temperature=temperature, hard_weight=hard)
    assert_same(ours, theirs, x, "logits", tol=1e-12)


@temperatures
def test_with_the_whole_vocabulary_it_is_the_dense_kl_of_liger(temperature: float) -> None:
    x = soft(temperature, Size(rows=5, vocab=61, k=61, hidden=1))
    x["logprobs"] = torch.log_softmax(x["logprobs"], 1)
    dense = torch.zeros_like(x["logits"]).scatter(1, x["ids64"], x["logprobs"])
    x["dense"] = torch.log_softmax(dense / temperature, 1)
    ours = partial(our_topk_kl, temperature=temperature)
    assert_same(ours, partial(rivals.dense_kl, temperature=temperature), x, "logits", tol=1e-12)
    if temperature == 1:
        ours = partial(our_topk_kl, divergence="js")
        assert_same(ours, rivals.dense_js, x, "logits", tol=1e-12)
        ours = partial(our_topk_kl, divergence="reverse")
        assert_same(ours, rivals.dense_reverse, x, "logits", tol=1e-12)


@pytest.mark.parametrize(
    ("divergence", "plain"), [("js", rivals.bucket_js), ("reverse", rivals.bucket_reverse)]
)
def test_js_and_reverse_are_the_plain_formulas(divergence: str, plain: Formula) -> None:
    ours = partial(our_topk_kl, divergence=divergence)
    assert_same(ours, plain, soft(1.0), "logits", tol=1e-7)


def our_linear(x: Tensors, **options: Any) -> torch.Tensor:
    arguments = (x[name] for name in ("hidden", "head", "bias", "ids", "logprobs"))
    loss: torch.Tensor = linear_topk_kl(*arguments, **options)
    return loss


def test_the_fused_head_is_axolotls_at_temperature_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals._AxolotlChunked, "ROWS", 3)  # three chunks, the last of one row
    x, leaves = linear(), ("hidden", "head", "bias")
    ours = partial(our_linear, tail="renormalize")
    assert_same(ours, rivals.linear_axolotl, x, *leaves, tol=1e-12)
    got, want = (
        value_and_gradients(f, x, *leaves) for f in (rivals.axolotl_chunked, rivals.linear_axolotl)
    )
    for mine, true in zip(got[1:], want[1:], strict=True):
        assert torch.allclose(mine, true, rtol=1e-9, atol=1e-15)
    assert got[0] == pytest.approx(float(want[0]), rel=1e-6)  # it sums the loss in float32


def test_the_fused_head_is_the_plain_formula() -> None:
    x = linear()
    ours = partial(our_linear, tail_logmass=x["tail_logmass"])
    assert_same(ours, rivals.linear_bucket, x, "hidden", "head", "bias", tol=1e-12)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, rivals.linear_dense_kl),
        ({"temperature": 2.0}, partial(rivals.linear_dense_kl, temperature=2.0)),
        ({"divergence": "js"}, rivals.linear_dense_js),
    ],
)
def test_linear_kl_is_the_divergence_of_both_heads_logits(
    options: dict[str, Any], plain: Formula
) -> None:
    def ours(x: Tensors) -> torch.Tensor:
        names = ("hidden", "head", "teacher_hidden", "teacher_head")
        loss: torch.Tensor = linear_kl(*(x[name] for name in names), **options)
        return loss

    assert_same(ours, plain, linear(), "hidden", "head", tol=1e-12)


@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="torch has it from version 2.13 on"
)
def test_torchs_linear_cross_entropy_has_the_gradient_of_linear_kl() -> None:
    x = linear()
    logits = F.linear(x["teacher_hidden"], x["teacher_head"])
    x["bias"] = torch.zeros_like(x["bias"])
    x["probabilities"] = torch.softmax(logits, 1)
    entropy = -(x["probabilities"] * torch.log_softmax(logits, 1)).sum(1).mean()
    kl = value_and_gradients(rivals.linear_dense_kl, x, "hidden", "head")
    ce = value_and_gradients(rivals.torch_linear_cross_entropy, x, "hidden", "head")
    assert torch.allclose(ce[0], kl[0] + entropy)
    assert all(torch.allclose(a, b) for a, b in zip(ce[1:], kl[1:], strict=True))


@pytest.mark.parametrize("normalize", ["none", "l2", "layernorm"])
@pytest.mark.parametrize("groups", [0, 3])
def test_hidden_mse_is_mse_loss_of_decoded_states(normalize: Any, groups: int) -> None:
    def ours(x: Tensors) -> torch.Tensor:
        return hidden_mse(x["student"], x["codes"], x["scale"], normalize=normalize)

    x = double(draw_hidden(SIZE, torch.float32, CPU, groups=groups))
    theirs = partial(rivals.hidden_mse, normalize=normalize)
    assert_same(ours, theirs, x, "student", tol=1e-11)


def test_topk_encode_is_topk_and_logsumexp() -> None:
    x = soft(2.0)
    got, want = topk_encode(x["logits"], 9), rivals.topk_and_tail(x, k=9)
    assert torch.equal(got[0], want[0])
    for mine, true in zip(got[1:], want[1:], strict=True):
        assert torch.allclose(mine.double(), true, rtol=1e-6, atol=1e-6)


def test_quantize_rows_is_rounding_to_a_step_of_the_row() -> None:
    x = draw_states(SIZE, torch.float32, CPU)
    codes, scale = quantize_rows(x["states"])
    want_codes, want_scale = rivals.round_rows(x)
    assert torch.equal(codes, want_codes)
    assert torch.equal(scale, want_scale)
    off = (dequantize_rows(codes, scale) - x["states"]).abs()
    assert (off <= 0.5001 * scale.float()[:, None]).all()


@pytest.mark.parametrize("form", [lean.bucket, lean.bucket_by_hand])
@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, rivals.bucket),
        ({"temperature": 2.0}, partial(rivals.bucket, temperature=2.0)),
        ({"hard_weight": 0.5}, partial(rivals.bucket, hard_weight=0.5)),
        ({"between": lean.reverse_kl}, rivals.bucket_reverse),
        ({"between": lean.jensen_shannon}, rivals.bucket_js),
    ],
)
def test_lean_buckets_are_the_plain_formulas(
    form: Any, options: dict[str, Any], plain: Formula
) -> None:
    x = soft(options.get("temperature", 1.0))
    assert_same(partial(form, **options), plain, x, "logits", tol=1e-11)


@temperatures
def test_lean_heads_are_the_plain_formulas(temperature: float) -> None:
    x = double(draw_linear(SIZE, torch.float32, CPU, True, temperature=temperature))
    plain = partial(rivals.linear_bucket, temperature=temperature)
    for form in (lean.linear_bucket, lean.linear_bucket_by_hand):
        ours = partial(form, temperature=temperature)
        assert_same(ours, plain, x, "hidden", "head", "bias", tol=1e-11)
    plain = partial(rivals.linear_dense_kl, temperature=temperature)
    for form in (lean.linear_kl, lean.linear_kl_by_hand):
        ours = partial(form, temperature=temperature)
        assert_same(ours, plain, x, "hidden", "head", tol=1e-11)
    if hasattr(F, "linear_cross_entropy") and temperature == 1:
        assert_same(lean.linear_kl_by_torch, plain, x, "hidden", "head", tol=1e-6)


def test_lean_forms_of_hidden_states_and_encoders_are_the_plain_formulas() -> None:
    for groups in (0, 3):
        x = double(draw_hidden(SIZE, torch.float32, CPU, groups=groups))
        assert_same(lean.hidden_mse_by_hand, rivals.hidden_mse, x, "student", tol=1e-11)
    x = soft(2.0)
    for got, want in zip(lean.topk_and_tail(x, k=9), rivals.topk_and_tail(x, k=9), strict=True):
        assert torch.allclose(got, want)
    x = draw_states(SIZE, torch.float32, CPU)
    for got, want in zip(lean.round_rows(x), rivals.round_rows(x), strict=True):
        assert torch.equal(got, want)
