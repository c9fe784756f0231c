"""linear_kl against dense float64 formulas; its row kernels are tested in test_dense_kl, what it
shares with linear_topk_kl in test_linear_heads."""

import pytest
import torch
from torch.nn import functional

from kdcache_kernels import dequantize_rows, linear_kl, linear_topk_kl, quantize_rows
from kdcache_kernels.linear_kl import reference
from kdcache_kernels.linear_kl.reference import make_inputs
from kdcache_kernels.linear_kl.spec import Spec
from kdcache_kernels.topk_kl.spec import DIVERGENCES
from tests.ops.divergences import assert_near, divergence_rows

NAMES = ("hidden", "weight", "bias")
divergences = pytest.mark.parametrize("divergence", DIVERGENCES)
temperatures = pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])


def teacher_logits(d):
    hidden, weight, bias = (d[f"teacher_{name}"].double() for name in NAMES)
    return hidden @ weight.t() + bias


def oracle(d, temperature=1.0, kind="forward", soft_weight=1.0, hard_weight=0.0):
    """Loss and gradients in float64 by autograd through the logits."""
    leaves = [d[name].double().requires_grad_() for name in NAMES]
    hidden, weight, bias = leaves
    student = hidden @ weight.t() + bias
    rows = soft_weight * divergence_rows(student, teacher_logits(d), temperature, kind)
    ce = functional.cross_entropy(student, d["labels"], reduction="none", ignore_index=-100)
    loss = (d["row_weight"].double() * (rows + hard_weight * ce)).sum()
    return loss.detach(), torch.autograd.grad(loss, leaves)


def run(d, **more):
    leaves = [d[name].clone().requires_grad_() for name in NAMES]
    loss = linear_kl(
        *leaves[:2],
        d["teacher_hidden"],
        d["teacher_weight"],
        bias=leaves[2],
        **{"teacher_bias": d["teacher_bias"], "row_weight": d["row_weight"], **more},
    )
    return loss.detach(), torch.autograd.grad(loss, leaves)


@temperatures
@divergences
@pytest.mark.parametrize("v", [2, 331, 9001], ids=["two", "odd", "pieces"])
@pytest.mark.parametrize("hard_weight", [0.0, 0.6])
def test_value_and_each_gradient_match_float64(divergence, temperature, v, hard_weight):
    d = make_inputs(5, v, 18, 25)
    d["labels"][1] = -100
    more = {"temperature": temperature, "soft_weight": 0.7, "hard_weight": hard_weight}
    loss, got = run(
        d, divergence=divergence, labels=d["labels"], chunk_bytes=2 * 4 * (v + 64), **more
    )
    want_loss, want = oracle(d, kind=divergence, **more)
    assert_near(loss, want_loss, 3e-6 + 1e-6 * temperature**2)
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("group", [None, 5])
def test_int8_codes_are_their_decoded_values(group):
    d = make_inputs(4, 331, 18, 25)
    codes, scale = quantize_rows(d["teacher_hidden"], group)
    decoded = {**d, "teacher_hidden": dequantize_rows(codes, scale)}
    loss, got = run({**d, "teacher_hidden": codes}, teacher_scale=scale, chunk_bytes=2 * 4 * 384)
    want_loss, want = oracle(decoded)
    assert_near(loss, want_loss)
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("hidden", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_16_bit_teacher_is_multiplied_in_full_precision(hidden, weight):
    d = make_inputs(4, 331, 18, 25)
    d["teacher_hidden"] = d["teacher_hidden"].to(hidden)
    d["teacher_weight"] = d["teacher_weight"].to(weight)
    d["teacher_bias"] = d["teacher_bias"].to(weight)
    loss, got = run(d)
    want_loss, want = oracle(d)
    assert_near(loss, want_loss)
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


@divergences
@temperatures
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(divergence, temperature):
    d = make_inputs(4, 1271, 18, 18)
    d["hidden"], d["weight"], d["bias"] = (d[f"teacher_{name}"] for name in NAMES)
    loss, got = run(d, divergence=divergence, temperature=temperature)
    assert abs(loss) < 1e-6 * temperature**2
    assert max(gradient.abs().max() for gradient in got) < 5e-6


@temperatures
def test_a_support_of_the_whole_vocabulary_gives_the_same(temperature):
    """linear_topk_kl with K = V is the same loss."""
    d = make_inputs(4, 57, 18, 25)
    loss, got = run(d, temperature=temperature)
    leaves = [d[name].clone().requires_grad_() for name in NAMES]
    sparse = linear_topk_kl(
        *leaves,
        torch.arange(57).expand(4, 57),
        teacher_logits(d).log_softmax(1).float(),
        temperature=temperature,
        row_weight=d["row_weight"],
    )
    assert_near(loss, sparse.detach(), 1e-5)
    for one, other in zip(got, torch.autograd.grad(sparse, leaves), strict=True):
        assert_near(one, other)


def test_the_reference_is_float64_autograd():
    """The oracle of the benchmarks, against the one here."""
    d = make_inputs(5, 331, 18, 25, dtype=torch.float64)
    spec = Spec(2.0, "forward", 1.0, 0.5, -100)
    found = reference.linear_kl(
        *(d[name] for name in NAMES), teacher_logits(d), d["row_weight"], d["labels"], spec
    )
    want_loss, want = oracle(d, 2.0, hard_weight=0.5)
    assert_near(found[0], want_loss, 1e-12)
    for one, other in zip(found[1:], want, strict=True):
        assert_near(one, other, 1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher_hidden": torch.zeros(3, 25)}, ValueError, "teacher_hidden must have shape"),
        ({"teacher_hidden": torch.zeros(25)}, ValueError, "teacher_hidden must be 2-D"),
        ({"teacher_weight": torch.zeros(39, 25)}, ValueError, "V = 40 classes .* Ht = 25"),
        ({"teacher_weight": torch.zeros(40, 24)}, ValueError, "V = 40 classes .* Ht = 25"),
        ({"teacher_bias": torch.zeros(1)}, ValueError, "teacher_bias must have shape"),
        ({"teacher_hidden": torch.zeros(5, 25).char()}, ValueError, "needs teacher_scale"),
        ({"teacher_scale": torch.zeros(5)}, ValueError, "a float one takes none"),
        (
            {"teacher_hidden": torch.zeros(5, 25).char(), "teacher_scale": torch.zeros(5, 2)},
            ValueError,
            "G dividing Ht = 25",
        ),
        ({"teacher_hidden": torch.zeros(5, 25).long()}, TypeError, "teacher_hidden must be one of"),
        ({"teacher_weight": torch.zeros(40, 25, device="meta")}, ValueError, "device of hidden"),
    ],
)
def test_a_wrong_teacher_says_what_to_do(change, error, message):
    d = make_inputs(5, 40, 6, 25)
    tensors = {name: x for name, x in change.items() if name in d}
    more = {name: x for name, x in change.items() if name not in d}
    with pytest.raises(error, match=message):
        run({**d, **tensors}, **more)
