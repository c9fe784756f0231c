"""The gradient of a loss times that of what follows it: one pass, in place, or none at all."""

import math

import pytest
import torch

from kdcache.bench.kernels_cases import CASES
from kdcache.bench.kernels_inputs import Size
from kdcache_kernels import linear_topk_kl, pair_distances, topk_kl
from kdcache_kernels._triton_scale import multiply_
from kdcache_kernels.topk_kl.reference import make_inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with NumPy
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, -3.0, math.nan])
@pytest.mark.parametrize("n", [0, 1, 4096, 9001])
def test_the_kernel_multiplies_in_place(dtype, factor, n):
    x = torch.randn(n, device=DEVICE).to(dtype)
    x[n // 2 :: 7] = 0
    want = x.clone() * factor if factor != 1 else x.clone()
    version = x._version
    assert multiply_(x, torch.tensor(factor, device=DEVICE)) is x
    assert torch.allclose(x, want, rtol=8e-3 if dtype == torch.bfloat16 else 1e-3, equal_nan=True)
    assert x._version > version


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with NumPy
def test_the_kernel_multiplies_what_is_not_contiguous():
    x = torch.arange(12.0, device=DEVICE).view(3, 4).t()
    want = x * 0.5
    assert torch.equal(multiply_(x, torch.tensor(0.5, device=DEVICE)), want)
    assert torch.equal(x, want)


def inputs():
    d = {name: x.to(DEVICE) for name, x in make_inputs(4, 300, 5).items()}
    return d, d.pop("logits").requires_grad_()


def kl(d, x, **more):
    return topk_kl(x, d["ids"], d["logprobs"], tail_logmass=d["tail_logmass"], **more)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_second_backward_through_a_kept_graph_finds_the_same_gradient(factor):
    d, x = inputs()
    loss = kl(d, x) * factor
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, kept)
    assert torch.equal(second, kept)
    (plain,) = torch.autograd.grad(kl(d, x), x)
    assert torch.allclose(second, plain * factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factors", [(1.0, 0.25), (0.25, 1.0), (1.0, 1.0)])
def test_a_gradient_given_out_is_not_changed_by_the_next(factors):
    d, x = inputs()
    loss = kl(d, x)
    (first,) = torch.autograd.grad(loss * factors[0], x, retain_graph=True)
    kept = first.clone()
    first.mul_(2)  # a hook may
    (second,) = torch.autograd.grad(loss * factors[1], x)
    assert torch.equal(first, 2 * kept)
    assert torch.allclose(second * factors[0], kept * factors[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_gradients_add_up_in_a_leaf_whatever_the_factor(factor):
    d, x = inputs()
    for _ in range(2):
        (kl(d, x) * factor).backward()
    (plain,) = torch.autograd.grad(kl(d, x), x)
    assert torch.allclose(x.grad, 2 * factor * plain, rtol=1e-6, atol=0)


def test_the_gradient_over_the_logits_takes_a_factor():
    d, x = inputs()
    (plain,) = torch.autograd.grad(kl(d, x), x)
    (got,) = torch.autograd.grad(kl(d, x * 1, inplace=True) * 0.25, x)
    assert torch.allclose(got, 0.25 * plain, rtol=1e-6, atol=0)


MADE = {case.op: case for case in reversed(CASES) if case.leaves}
del MADE["layer_costs"]  # makes its gradients in the backward
LARGE = Size(rows=600, vocab=601, k=16, hidden=384)  # a few elements of hidden_mse are torch's


def work(call):
    """Bytes that torch allocates during a call, and elements that it copies or multiplies."""
    with torch.profiler.profile(profile_memory=True, record_shapes=True) as found:
        call()
    passes = {"aten::copy_", "aten::mul", "aten::mul_"}
    events = [e for e in found.events() if e.name in passes]
    outer = [e for e in events if e.cpu_parent is None or e.cpu_parent.name not in passes]
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in found.events())
    return allocated, sum(math.prod(e.input_shapes[0]) for e in outer)


def run(op):
    """The loss of the op's first case, and the leaves of its gradients."""
    case = MADE[op]
    x = case.fresh(case.ours, case.draw(LARGE, torch.float32, torch.device("cpu"), False))
    if op == "pair_distances":  # of one batch: those of several would be stacked
        leaf = x["student"][0].detach().requires_grad_()
        return pair_distances(leaf, x["teacher"][0]), [leaf]
    return case.ours(x), [x[name] for name in case.leaves]


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the memory of a CPU")
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("op", sorted(MADE))
def test_backward_goes_over_a_gradient_once_at_most(op, factor, kept):
    """And makes one of its own where the saved one may be asked for again."""
    loss, leaves = run(op)
    loss = loss * factor
    made, passed = work(lambda: torch.autograd.grad(loss, leaves, retain_graph=kept))
    elements = sum(leaf.numel() for leaf in leaves)
    assert made == pytest.approx(4 * elements * kept, rel=0.02, abs=4096)
    assert passed == pytest.approx(elements * (kept or factor != 1), rel=0.02, abs=64)


def test_several_factors_at_once():
    d, x = inputs()
    factors = torch.tensor([1.0, 0.5, -2.0], device=DEVICE)
    (plain,) = torch.autograd.grad(kl(d, x), x)
    (many,) = torch.autograd.grad(kl(d, x), x, factors, is_grads_batched=True)
    assert torch.allclose(many, factors[:, None, None] * plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kept", [True, False])
def test_a_factor_is_not_rounded_to_the_dtype_of_the_gradient(kept):
    d, x = inputs()
    x = x.detach().bfloat16().requires_grad_()
    (plain,) = torch.autograd.grad(kl(d, x), x)
    (third,) = torch.autograd.grad(kl(d, x) / 3, x, retain_graph=kept)
    assert torch.equal(third, (plain.float() * torch.tensor(1 / 3)).bfloat16().to(DEVICE))


@pytest.mark.parametrize("rows", [4, 3000])  # small gradients are torch's own memory
def test_gradients_may_be_changed_in_place(rows):
    d = {name: v.to(DEVICE) for name, v in make_inputs(rows, 300, 5).items()}
    hidden = torch.randn(rows, 8, device=DEVICE, requires_grad=True)
    weight = torch.randn(300, 8, device=DEVICE, requires_grad=True)
    loss = linear_topk_kl(
        hidden, weight, None, d["ids"], d["logprobs"], tail_logmass=d["tail_logmass"]
    )
    x = d["logits"].requires_grad_()
    found = (*torch.autograd.grad(loss, (hidden, weight)), *torch.autograd.grad(kl(d, x), x))
    for gradient, leaf in zip(found, (hidden, weight, x), strict=True):
        assert gradient.add_(leaf, alpha=0.1).requires_grad
