"""topk_kl: every backend against a dense float64 oracle, value and gradient apart."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kdcache_kernels
from kdcache_kernels import topk_kl
from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels.topk_kl import _numba, reference
from kdcache_kernels.topk_kl.reference import make_inputs
from kdcache_kernels.topk_kl.spec import Spec, Teacher

BACKENDS = {"numba": _numba.topk_kl, "reference": reference.topk_kl}
TAILS = ("bucket", "renormalize", "truncate")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
backends = pytest.mark.parametrize("backend", BACKENDS)
tails = pytest.mark.parametrize("tail", TAILS)
temperatures = pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])


def oracle_row(x, ids, lp, rest, temperature, tail):
    """T^2 KL of one row from explicit dense distributions, in float64."""
    ids, lp = ids.long()[ids.long() >= 0], lp.double()[ids.long() >= 0]
    lq = torch.log_softmax(x / temperature, 0)
    p = torch.exp(lp / temperature)
    if tail == "bucket":
        outside = torch.ones_like(lq, dtype=torch.bool).index_fill(0, ids, False)
        p = torch.cat([p, rest.exp()[None]]) / (p.sum() + rest.exp())
        lq = torch.cat([lq[ids], lq[outside].logsumexp(0)[None]])
    else:
        lq = lq[ids]
        if tail == "renormalize":
            p = p / p.sum()
        elif temperature != 1:
            p = p / (p.sum() + rest.exp())
    keep = p > 0
    return temperature**2 * (p[keep] * (p[keep].log() - lq[keep])).sum()


def oracle(d, temperature, tail, soft_weight=1.0, hard_weight=0.0):
    """Loss and gradient in float64 by autograd; masked rows are never touched."""
    x = d["logits"].double().clone().requires_grad_()
    rest = (d["tail_logmass"] if temperature == 1 else d["tail_stat"]).double()
    total = torch.zeros((), dtype=torch.float64)
    for i, w in enumerate(d["weight"].double()):
        if w == 0:
            continue
        row = soft_weight * oracle_row(
            x[i], d["ids"][i], d["logprobs"][i], rest[i], temperature, tail
        )
        if hard_weight and d["labels"][i] != -100:
            ce = torch.nn.functional.cross_entropy(x[i][None], d["labels"][i][None])
            row = row + hard_weight * ce
        total = total + w * row
    (gradient,) = torch.autograd.grad(total, x) if total.requires_grad else (x.detach() * 0,)
    return total.detach(), gradient


def run(backend, d, temperature, tail, soft_weight=1.0, hard_weight=0.0, divergence="forward"):
    """Loss, gradient and rows of a backend; the gradient starts as NaN."""
    rest = d["tail_logmass"] if temperature == 1 else d["tail_stat"]
    needs_rest = tail == "bucket" or (tail == "truncate" and temperature != 1)
    out = torch.full(d["logits"].shape, math.nan, dtype=gradient_dtype(d["logits"]))
    loss, soft, hard = BACKENDS[backend](
        d["logits"],
        Teacher(d["ids"], d["logprobs"], rest if needs_rest else None),
        d["weight"],
        d["labels"] if hard_weight else None,
        Spec(temperature, tail, divergence, soft_weight, hard_weight, -100),
        out,
        False,
    )
    return loss, out, soft, hard


def options(d, temperature=1.0):
    """The keyword tensors of the public function for this temperature."""
    return {
        "tail_logmass": d["tail_logmass"],
        "tail_stat": d["tail_stat"] if temperature != 1 else None,
        "temperature": temperature,
        "weight": d["weight"],
    }


def assert_near(got: Tensor, want: Tensor, tol: float = 2e-6) -> None:
    assert (got.double() - want).abs().max() <= tol * (1 + want.abs().max())


@backends
@tails
@temperatures
@pytest.mark.parametrize(
    ("n", "v", "k", "pads"),
    [(3, 7, 1, 0), (4, 7, 7, 0), (5, 1271, 13, 0), (3, 1271, 64, 5), (2, 30522, 64, 0)],
    ids=["k1", "k=v", "ragged", "pads", "bert"],
)
def test_value_and_gradient_match_float64(backend, tail, temperature, n, v, k, pads):
    d = make_inputs(n, v, k, temperature=temperature, pads=pads)
    loss, gradient, _, _ = run(backend, d, temperature, tail)
    want_loss, want_gradient = oracle(d, temperature, tail)
    assert_near(loss, want_loss, 2e-6 + 5e-7 * temperature**2)  # T^2 multiplies what rounding left
    assert_near(gradient, want_gradient)


@backends
@temperatures
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_torch(backend, temperature, dtype):
    d = make_inputs(6, 1271, 16, dtype=dtype, temperature=temperature)
    d["weight"] = torch.full((6,), 0.25)
    loss, gradient, _, _ = run(backend, d, temperature, "renormalize", 1.0, 0.5)
    want_loss, want = oracle(d, temperature, "renormalize", 1.0, 0.5)
    x = d["logits"].clone().requires_grad_()
    p = torch.softmax(d["logprobs"] / temperature, 1)
    lq = torch.log_softmax(x / temperature, 1).gather(1, d["ids"])
    kl = temperature**2 * (p * (p.log() - lq)).sum(1)
    plain = 0.25 * (kl + 0.5 * torch.nn.functional.cross_entropy(x, d["labels"], reduction="none"))
    plain.sum().backward()
    assert (loss - want_loss).abs() <= 2 * (plain.sum().detach() - want_loss).abs() + 1e-5
    assert (gradient - want).abs().max() <= 2 * (x.grad - want).abs().max() + 1e-6


@backends
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bf16_gradient_is_the_rounded_float64_one(backend, temperature):
    d = make_inputs(4, 1271, 16, dtype=torch.bfloat16, temperature=temperature)
    _, gradient, _, _ = run(backend, d, temperature, "bucket", 1.0, 0.5)
    want = oracle(d, temperature, "bucket", 1.0, 0.5)[1]
    relative = (gradient.double() - want).abs() / (want.abs() + 1e-7)
    assert gradient.dtype == torch.bfloat16
    assert relative.max() < 2**-8 + 1e-3


def test_fp16_gradient_survives_a_loss_scaler():
    d = make_inputs(2, 1271, 8, dtype=torch.float16)
    x = d["logits"].requires_grad_()
    d["weight"] = torch.full((2,), 1e-6)  # such a gradient is below the smallest float16
    (65536 * topk_kl(x, d["ids"], d["logprobs"], **options(d))).backward()
    assert x.grad.dtype == torch.float16
    want = 65536 * oracle({**d, "logits": x.detach()}, 1.0, "bucket")[1]
    assert (x.grad - want).abs().max() <= 1e-3 * want.abs().max()


@backends
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint16], ids=str)
def test_every_integer_dtype_with_pads(backend, dtype):
    d = make_inputs(4, 1271, 9, pads=2)
    want = oracle(d, 1.0, "bucket")
    d["ids"] = d["ids"].to(torch.int16).view(dtype) if dtype.itemsize == 2 else d["ids"].to(dtype)
    loss, gradient, _, _ = run(backend, d, 1.0, "bucket")
    assert_near(loss, want[0])
    assert_near(gradient, want[1])


@backends
def test_the_last_uint16_id_is_a_class_in_a_vocabulary_of_65536(backend):
    d = make_inputs(1, 65536, 3)
    d["ids"] = torch.tensor([[65535, 0, 7]])
    want = oracle(d, 1.0, "renormalize")
    d["ids"] = d["ids"].to(torch.uint16)
    assert_near(run(backend, d, 1.0, "renormalize")[1], want[1])


@backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["sliced", "offset", "transposed", "expanded", "padded"])
def test_any_layout_of_the_logits(backend, dtype, layout):
    d = make_inputs(4, 31, 5, dtype=dtype)
    x = d["logits"]
    if layout == "sliced":
        x = torch.full((8, 31), math.nan, dtype=dtype).index_copy_(0, torch.arange(0, 8, 2), x)[::2]
    elif layout == "offset":
        x = torch.cat([x.new_zeros(3), x.flatten()])[3:].view(4, 31)
    elif layout == "transposed":
        x = x.t().contiguous().t()
    elif layout == "expanded":
        x = x[:1].expand(4, 31)
    else:
        x = torch.cat([x, x.new_full((4, 6), math.nan)], 1)[:, :31]
    d["logits"] = x
    want = run("reference", {**d, "logits": x.clone().contiguous()}, 2.0, "bucket")
    loss, gradient, _, _ = run(backend, d, 2.0, "bucket")
    assert gradient.is_contiguous()
    assert_near(loss, want[0].double())
    assert_near(gradient, want[1].double(), 1e-2 if dtype == torch.bfloat16 else 2e-6)


@backends
@tails
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_rows_are_not_read_and_get_exact_zeros(backend, tail, temperature, dtype):
    d = make_inputs(5, 1271, 9, dtype=dtype, temperature=temperature)
    for i in (1, 4):
        d["weight"][i] = 0
        d["logits"][i] = math.nan
        d["logprobs"][i] = math.nan
        d["tail_logmass"][i] = d["tail_stat"][i] = math.nan
    d["labels"][0] = -100
    loss, gradient, soft, hard = run(backend, d, temperature, tail, 0.7, 0.3)
    want_loss, want = oracle(d, temperature, tail, 0.7, 0.3)
    assert torch.equal(gradient[[1, 4]], torch.zeros_like(gradient[[1, 4]]))
    assert soft[[1, 4]].tolist() == hard[[1, 4]].tolist() == [0, 0]
    assert_near(loss, want_loss)
    assert_near(gradient, want, 1e-2 if dtype == torch.bfloat16 else 2e-6)


@backends
def test_all_rows_masked_give_zero(backend):
    d = make_inputs(3, 7, 2)
    d["weight"].zero_()
    d["logits"].fill_(math.nan)
    loss, gradient, soft, _ = run(backend, d, 1.0, "bucket")
    assert loss == 0
    assert not gradient.any()
    assert not soft.any()


@backends
@temperatures
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bucket_vanishes_at_the_fixed_point(backend, temperature, dtype):
    d = make_inputs(4, 1271, 16)
    x = d["logits"] = d["logits"].to(dtype)
    logp = torch.log_softmax(x.double(), 1)
    d["logprobs"], d["ids"] = logp.topk(16, 1)
    rest = logp.scatter(1, d["ids"], -math.inf)
    d["tail_logmass"] = rest.logsumexp(1).float()
    d["tail_stat"] = (rest / temperature).logsumexp(1).float()
    loss, gradient, _, _ = run(backend, d, temperature, "bucket")
    assert loss.abs() < 1e-5
    assert gradient.abs().max() < 1e-6


@backends
def test_truncate_at_the_fixed_point_pushes_by_its_formula(backend):
    d = make_inputs(3, 50, 4)
    logp = torch.log_softmax(d["logits"].double(), 1)
    d["logprobs"], d["ids"] = logp.topk(4, 1)
    d["weight"].fill_(1)
    mass = d["logprobs"].exp().sum(1, keepdim=True)
    want = mass * logp.exp()
    want = want.scatter_add(1, d["ids"], -d["logprobs"].exp())
    assert want.abs().max() > 1e-2
    assert_near(run(backend, d, 1.0, "truncate")[1], want)


@backends
@tails
@temperatures
def test_gradient_sums_to_zero_and_is_dense(backend, tail, temperature):
    d = make_inputs(4, 1271, 16, temperature=temperature)
    gradient = run(backend, d, temperature, tail, 1.0, 0.5)[1]
    assert gradient.double().sum(1).abs().max() < 1e-6
    assert (gradient != 0).all()


@backends
def test_a_confident_student_keeps_its_tail(backend):
    """The student's rest is 200 nats down: 1 - sum(q) is zero, and exp underflows."""
    d = make_inputs(2, 1271, 4)
    d["logits"] = d["logits"].scatter(1, d["ids"], d["logits"].gather(1, d["ids"]) + 200)
    loss, gradient, _, _ = run(backend, d, 1.0, "bucket", 1.0, 0.5)
    want_loss, want = oracle(d, 1.0, "bucket", 1.0, 0.5)
    assert_near(loss, want_loss)
    assert_near(gradient, want)


@backends
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_huge_logits(backend, temperature):
    d = make_inputs(3, 1271, 8, temperature=temperature)
    d["logits"][0, ::3] = 1e4
    d["logits"][1] -= 1e4
    loss, gradient, _, _ = run(backend, d, temperature, "bucket", 1.0, 0.5)
    want_loss, want = oracle(d, temperature, "bucket", 1.0, 0.5)
    assert_near(loss, want_loss)
    assert_near(gradient, want)


@backends
def test_banned_tokens_outside_the_support(backend):
    d = make_inputs(3, 40, 5)
    outside = torch.ones(3, 40, dtype=torch.bool).scatter(1, d["ids"], False)
    outside[:, ::2] = False
    d["logits"][outside] = -math.inf
    loss, gradient, _, _ = run(backend, d, 2.0, "bucket", 1.0, 0.0)
    want_loss, want = oracle(d, 2.0, "bucket")
    assert_near(loss, want_loss)
    assert_near(gradient, want.nan_to_num(0))
    assert not gradient[outside].any()


@backends
def test_a_banned_token_in_the_support_costs_infinity_in_its_row_only(backend):
    d = make_inputs(3, 40, 5)
    d["logits"][1, d["ids"][1, 2]] = -math.inf
    loss, gradient, soft, _ = run(backend, d, 1.0, "bucket")
    assert loss == math.inf
    assert soft.isinf().tolist() == [False, True, False]
    assert gradient.isfinite().all()


@backends
@pytest.mark.parametrize("poison", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_in_a_live_row_are_not_hidden(backend, poison, dtype):
    d = make_inputs(3, 1271, 5, dtype=dtype)
    d["logits"][1, 700] = poison
    loss, gradient, soft, _ = run(backend, d, 1.0, "bucket")
    assert loss.isnan()
    assert soft.isnan().tolist() == [False, True, False]
    assert gradient[1].isnan().any()
    assert gradient[[0, 2]].isfinite().all()


@backends
def test_zero_probability_in_the_support(backend):
    d = make_inputs(3, 40, 5)
    d["logprobs"][:, 3] = -math.inf
    loss, gradient, _, _ = run(backend, d, 2.0, "bucket")
    want_loss, want = oracle(d, 2.0, "bucket")
    assert_near(loss, want_loss)
    assert_near(gradient, want)


@backends
@tails
def test_a_row_of_pads_only_has_no_soft_loss(backend, tail):
    d = make_inputs(2, 40, 5)
    d["ids"][1], d["logprobs"][1] = -1, -math.inf
    d["tail_logmass"][1] = 0  # all of the mass is in the tail
    _, gradient, soft, _ = run(backend, d, 1.0, tail)
    assert soft[1].abs() < 1e-6
    assert gradient[1].abs().max() < 1e-6


@backends
def test_probabilities_above_one_keep_the_loss_non_negative(backend):
    """Storage rounds log-probabilities: their sum may pass one."""
    d = make_inputs(4, 40, 20)
    d["logprobs"] += 0.05
    d["logits"] = torch.full((4, 40), -20.0).scatter(1, d["ids"], d["logprobs"])
    _, gradient, soft, _ = run(backend, d, 1.0, "bucket")
    assert (soft >= -1e-6).all()
    assert gradient.sum(1).abs().max() < 1e-6


@backends
@temperatures
def test_labels_inside_and_outside_the_support_and_ignored(backend, temperature):
    d = make_inputs(4, 1271, 9, temperature=temperature)
    d["labels"] = torch.tensor([int(d["ids"][0, 3]), int(d["logits"][1].argmin()), -100, 1270])
    for soft_weight in (0.0, 1.0):
        loss, gradient, _, hard = run(backend, d, temperature, "bucket", soft_weight, 0.5)
        want_loss, want = oracle(d, temperature, "bucket", soft_weight, 0.5)
        assert_near(loss, want_loss)
        assert_near(gradient, want)
        assert hard[2] == 0


@backends
def test_a_zero_coefficient_silences_an_infinite_loss(backend):
    d = make_inputs(2, 40, 5)
    d["logits"][:, d["ids"][0, 0]] = -math.inf
    d["labels"] = torch.full((2,), int(d["logits"][0].argmax()))
    loss, gradient, soft, _ = run(backend, d, 1.0, "renormalize", 0.0, 1.0)
    assert soft[0] == math.inf
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_rows_add_up_to_the_loss(dtype):
    d = make_inputs(4, 200, 9, dtype=dtype)
    x = d["logits"].requires_grad_()
    loss, soft, hard = topk_kl(
        x,
        d["ids"],
        d["logprobs"],
        **options(d),
        soft_weight=0.7,
        labels=d["labels"],
        hard_weight=0.3,
        return_rows=True,
    )
    assert not soft.requires_grad
    assert not hard.requires_grad
    assert_near((d["weight"] * (0.7 * soft + 0.3 * hard)).sum(), loss.detach().double())


def test_rows_are_masked_means_by_default():
    d = make_inputs(4, 200, 9)
    loss, soft, hard = topk_kl(
        d["logits"], d["ids"], d["logprobs"], tail="renormalize", return_rows=True
    )
    assert torch.allclose(loss, soft.mean())
    assert not hard.any()


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, -3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_output_scales_the_gradient(factor, dtype):
    d = make_inputs(4, 200, 9, dtype=dtype)
    x = d["logits"].requires_grad_()
    loss = topk_kl(x, d["ids"], d["logprobs"], **options(d))
    (one,) = torch.autograd.grad(loss, x, retain_graph=True)
    (some,) = torch.autograd.grad(factor * loss, x)
    assert torch.allclose(some.float(), factor * one.float(), rtol=1e-2, atol=1e-4)


def test_two_backwards_add_up():
    d = make_inputs(4, 200, 9)
    x = d["logits"].requires_grad_()
    loss = topk_kl(x, d["ids"], d["logprobs"], **options(d))
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * once)


def test_two_halves_accumulate_to_the_whole():
    d = make_inputs(6, 200, 9)
    x = d["logits"].requires_grad_()
    topk_kl(x, d["ids"], d["logprobs"], **options(d)).backward()
    whole, x.grad = x.grad, None
    for part in (slice(0, 2), slice(2, 6)):
        kwargs = {k: v[part] if isinstance(v, Tensor) else v for k, v in options(d).items()}
        topk_kl(x[part], d["ids"][part], d["logprobs"][part], **kwargs).backward()
    assert torch.equal(x.grad, whole)


def test_without_gradients_no_gradient_is_made(monkeypatch):
    d = make_inputs(4, 200, 9)
    made = []
    module = sys.modules["kdcache_kernels.topk_kl"]
    original = module.empty

    def spy(shape, *args):
        made.append(shape[0])
        return original(shape, *args)

    monkeypatch.setattr(module, "empty", spy)
    x = d["logits"]
    before = x.clone()
    plain = topk_kl(x, d["ids"], d["logprobs"], **options(d))
    with torch.no_grad():
        quiet = topk_kl(x.requires_grad_(), d["ids"], d["logprobs"], **options(d))
    loud = topk_kl(x, d["ids"], d["logprobs"], **options(d))
    assert made == [0, 0, 4]
    assert plain == quiet == loud.detach()
    assert not quiet.requires_grad
    assert torch.equal(x, before)


def test_double_backward_is_refused():
    d = make_inputs(2, 20, 3)
    for factor in (1.0, 2.0):
        x = d["logits"].clone().requires_grad_()
        loss = factor * topk_kl(x, d["ids"], d["logprobs"], **options(d))
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="no double backward"):
            gradient.sum().backward()


@tails
def test_gradcheck_in_float64(tail):
    d = make_inputs(3, 11, 4, dtype=torch.float64, pads=1)
    x = d["logits"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda y: topk_kl(
            y,
            d["ids"],
            d["logprobs"],
            **options(d, 2.0),
            tail=tail,
            labels=d["labels"],
            hard_weight=0.5,
        ),
        (x,),
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_opcheck(dtype):
    d = make_inputs(3, 11, 4, dtype=dtype)
    x = d["logits"].requires_grad_()
    args = (x, d["ids"], d["logprobs"], d["tail_stat"], d["weight"].to(_compute(dtype)))
    args = (*args, d["labels"], 2.0, "bucket", "forward", 1.0, 0.5, -100)
    torch.library.opcheck(torch.ops.kdcache.topk_kl.default, (*args, True, True))
    args = (x.detach(), *args[1:5], None, *args[6:])
    torch.library.opcheck(torch.ops.kdcache.topk_kl.default, (*args, False, False))


def _compute(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(backend, dtype):
    torch._dynamo.reset()
    d = make_inputs(3, 50, 4, dtype=dtype)
    x = d["logits"].requires_grad_()

    def step(y):
        return 3 * topk_kl(2 * y, d["ids"], d["logprobs"], **options(d, 2.0))

    step(x).backward()
    want, x.grad = x.grad, None
    torch.compile(step, backend=backend, fullgraph=True)(x).backward()
    assert torch.allclose(x.grad, want)


@backends
def test_bad_rows_are_nan_when_not_checked(backend):
    d = make_inputs(3, 40, 5)
    d["ids"][1, 2] = 40
    d["labels"][2] = 40
    _, gradient, soft, hard = run(backend, d, 1.0, "bucket", 1.0, 1.0)
    assert soft.isnan().tolist() == [False, True, False]
    assert hard.isnan().tolist() == [False, False, True]
    assert gradient.isnan().any(1).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": (1, 0, 40)}, r"row 1 .*vocabulary"),
        ({"ids": (1, 0, -2)}, r"row 1 .*vocabulary"),
        ({"labels": (2, 40)}, r"labels must lie .* row 2 holds 40"),
        ({"labels": (2, -1)}, r"row 2 holds -1"),
        ({"ids": (2, slice(0, 2), 7)}, "must not repeat"),
    ],
)
def test_wrong_ids_and_labels_raise_on_cpu(dtype, change, message):
    d = make_inputs(3, 40, 5, dtype=dtype)
    for name, (*where, value) in change.items():
        d[name][tuple(where)] = value
    kwargs = {**options(d), "labels": d["labels"], "hard_weight": 1.0}
    with pytest.raises(ValueError, match=message):
        topk_kl(d["logits"], d["ids"], d["logprobs"], **kwargs)
    kwargs["weight"] = torch.tensor([1.0, 0.0, 0.0])  # a masked row may hold anything
    assert topk_kl(d["logits"], d["ids"], d["logprobs"], **kwargs).isfinite()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tail_logmass": None}, ValueError, "needs tail_logmass"),
        ({"temperature": 2.0}, ValueError, "needs tail_stat"),
        ({"temperature": 2.0, "tail": "truncate"}, ValueError, "needs tail_stat"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive"),
        ({"tail": "drop"}, ValueError, "bucket, renormalize, truncate; got 'drop'"),
        ({"hard_weight": 1.0}, ValueError, "needs labels"),
        ({"logits": torch.zeros(2, 3, 4)}, ValueError, "flatten"),
        ({"logits": torch.zeros(3, 40, dtype=torch.int64)}, TypeError, "logits must be one of"),
        ({"ids": torch.zeros(3, 5)}, TypeError, "ids must be one of int16"),
        ({"ids": torch.zeros(2, 5, dtype=torch.int64)}, ValueError, "N = 3"),
        ({"logprobs": torch.zeros(3, 4)}, ValueError, r"\(3, 5\); got \(3, 4\)"),
        ({"labels": torch.zeros(3)}, TypeError, "labels must be one of int64"),
        ({"weight": torch.ones(3, dtype=torch.bool)}, TypeError, "weight must be one of"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must have shape \(3,\)"),
        ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "detach"),
        ({"weight": torch.ones(3, device="meta")}, ValueError, "device of logits"),
        ({"tail_logmass": torch.zeros(3, 1)}, ValueError, "tail_logmass must have shape"),
    ],
)
def test_wrong_arguments_say_what_to_do(change, error, message):
    d = make_inputs(3, 40, 5)
    kwargs = {name: d[name] for name in ("logits", "ids", "logprobs", "tail_logmass")}
    with pytest.raises(error, match=message):
        topk_kl(**{**kwargs, **change})


def test_a_whole_vocabulary_needs_no_tail_and_is_dense_kl():
    d = make_inputs(3, 9, 9)
    for temperature in (1.0, 2.0):
        logp = torch.empty(3, 9).scatter(1, d["ids"], d["logprobs"]) / temperature
        logq = torch.log_softmax(d["logits"] / temperature, 1)
        logp = torch.log_softmax(logp, 1)
        want = temperature**2 * torch.nn.functional.kl_div(
            logq, logp, reduction="batchmean", log_target=True
        )
        for tail in TAILS:
            got = topk_kl(d["logits"], d["ids"], d["logprobs"], temperature=temperature, tail=tail)
            assert torch.allclose(got, want, rtol=1e-5)


def test_no_rows_give_zero():
    x = torch.zeros(0, 9, requires_grad=True)
    loss = topk_kl(x, torch.zeros(0, 2).long(), torch.zeros(0, 2), tail="renormalize")
    loss.backward()
    assert loss == 0
    assert x.grad.shape == (0, 9)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    v=st.integers(2, 60),
    data=st.data(),
    tail=st.sampled_from(TAILS),
    temperature=st.sampled_from([1.0, 1.5, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_identities(n, v, data, tail, temperature, seed):
    """Order of ids does not matter, weight scales, rows of gradient sum to zero."""
    d = make_inputs(n, v, data.draw(st.integers(1, v)), temperature=temperature, seed=seed)
    loss, gradient, _, _ = run("numba", d, temperature, tail)
    assert_near(gradient.sum(1), torch.zeros(n).double())
    other = run("reference", d, temperature, tail)
    assert_near(loss, other[0].double(), 1e-5)
    assert_near(gradient, other[1].double(), 1e-5)
    order = torch.randperm(d["ids"].shape[1])
    shuffled = {**d, "ids": d["ids"][:, order], "logprobs": d["logprobs"][:, order]}
    assert_near(run("numba", shuffled, temperature, tail)[1], gradient.double())
    heavy = run("numba", {**d, "weight": 3 * d["weight"]}, temperature, tail)
    assert_near(heavy[0], 3 * loss.double())
    assert_near(heavy[1], 3 * gradient.double())


def test_public_names():
    assert sorted(kdcache_kernels.__all__) == kdcache_kernels.__all__
    assert all(callable(getattr(kdcache_kernels, name)) for name in kdcache_kernels.__all__)


@pytest.mark.parametrize("shift", [0.0, 1e3, -2e5, 5e5, -3e6, 2e7])
@pytest.mark.parametrize("temperature", [1.0, 0.25, 2.0, 7.9, 1000.0])
@pytest.mark.parametrize("hard_weight", [0.0, 0.5])
def test_rows_far_from_zero_keep_their_digits(shift, temperature, hard_weight):
    """Of so large logits a float32 has few digits: what they are is what counts."""
    draw = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(4, 9001, generator=draw) + shift
    x[1, 4096:] -= 200.0
    x[2, :4096] -= 300.0
    support = torch.randn(4, 9001, generator=draw).log_softmax(1).topk(5)
    found = {}
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        loss = topk_kl(
            leaf,
            support.indices,
            support.values.to(dtype),
            temperature=temperature,
            tail="renormalize",
            labels=torch.tensor([7, 5000, 5, 9000]),
            hard_weight=hard_weight,
        )
        found[dtype] = loss.detach().double(), *torch.autograd.grad(loss, leaf)
    for got, want in zip(found[torch.float32], found[torch.float64], strict=True):
        assert (got - want).abs().max() <= 3e-6 * want.abs().max()
