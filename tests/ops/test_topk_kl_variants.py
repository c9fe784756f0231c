"""topk_kl: reverse and Jensen-Shannon divergence, and the gradient written over the logits."""

import math

import pytest
import torch

from kdcache_kernels import topk_kl
from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels.topk_kl import _numba, reference
from kdcache_kernels.topk_kl.reference import make_inputs
from kdcache_kernels.topk_kl.spec import Spec, Teacher

BACKENDS = {"numba": _numba.topk_kl, "reference": reference.topk_kl}
backends = pytest.mark.parametrize("backend", BACKENDS)
divergences = pytest.mark.parametrize("divergence", ["reverse", "js"])


def dense_divergence(x, d, temperature, divergence):
    """Rows of T^2 D from explicit distributions over support and tail, in float64."""
    rest = (d["tail_logmass"] if temperature == 1 else d["tail_stat"]).double()
    rows = []
    for i in range(len(x)):
        ids = d["ids"][i].long()
        ids, lp = ids[ids >= 0], d["logprobs"][i].double()[ids >= 0]
        p = torch.cat([lp / temperature, rest[i : i + 1]]).softmax(0)
        lq = torch.log_softmax(x[i] / temperature, 0)
        outside = torch.ones_like(lq, dtype=torch.bool).index_fill(0, ids, False)
        q = torch.cat([lq[ids], lq[outside].logsumexp(0)[None]]).exp()
        if divergence == "reverse":
            rows.append((q * (q / p).log()).sum())
        else:
            m = (p + q) / 2
            rows.append((p * (p / m).log() + q * (q / m).log()).sum() / 2)
    return temperature**2 * torch.stack(rows)


def run(backend, d, temperature, divergence):
    rest = d["tail_logmass"] if temperature == 1 else d["tail_stat"]
    out = torch.full(d["logits"].shape, math.nan, dtype=gradient_dtype(d["logits"]))
    teacher = Teacher(d["ids"], d["logprobs"], rest)
    spec = Spec(temperature, "bucket", divergence, 1.0, 0.0, -100)
    loss, soft, _ = BACKENDS[backend](d["logits"], teacher, d["weight"], None, spec, out, False)
    return loss, soft, out


@backends
@divergences
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("size", [(3, 7, 1, 0), (4, 1271, 16, 3), (2, 30522, 64, 0)], ids=str)
def test_value_and_gradient_match_float64(backend, divergence, temperature, size):
    d = make_inputs(*size[:3], temperature=temperature, pads=size[3])
    loss, soft, gradient = run(backend, d, temperature, divergence)
    x = d["logits"].double().requires_grad_()
    rows = dense_divergence(x, d, temperature, divergence)
    (d["weight"].double() * rows).sum().backward()
    assert torch.allclose(soft.double(), rows.detach(), rtol=2e-5, atol=2e-6 * temperature**2)
    assert (loss - (d["weight"] * rows.detach()).sum()).abs() < 2e-5
    assert (gradient - x.grad).abs().max() <= 3e-6 * (1 + x.grad.abs().max())


@backends
@divergences
def test_no_loss_and_no_gradient_where_student_and_teacher_agree(backend, divergence):
    d = make_inputs(4, 1271, 16, temperature=2.0)
    logp = torch.full((4, 1271), -1.0).scatter(1, d["ids"], d["logprobs"])
    support = torch.zeros(4, 1271).scatter(1, d["ids"], 1.0).bool()
    rest = torch.randn(4, 1271).masked_fill(support, -math.inf)
    shift = 2 * (d["tail_stat"] - (rest / 2).logsumexp(1))  # the tail's p^(1/2) sum to tail_stat
    d["logits"] = torch.where(support, logp, rest + shift[:, None])
    loss, _, gradient = run(backend, d, 2.0, divergence)
    assert loss.abs() < 1e-5
    assert gradient.abs().max() < 1e-6


@divergences
def test_jensen_shannon_and_reverse_need_the_students_tail(divergence):
    d = make_inputs(2, 20, 3)
    with pytest.raises(ValueError, match="use tail='bucket'; got tail='truncate'"):
        topk_kl(d["logits"], d["ids"], d["logprobs"], tail="truncate", divergence=divergence)


def test_an_unknown_divergence_is_named():
    d = make_inputs(2, 20, 3)
    with pytest.raises(ValueError, match="forward, reverse, js; got 'kl'"):
        topk_kl(d["logits"], d["ids"], d["logprobs"], tail="renormalize", divergence="kl")


def kwargs(d):
    return {"tail_logmass": d["tail_logmass"], "weight": d["weight"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_gradient_over_the_logits_is_the_gradient(dtype):
    d = make_inputs(5, 1271, 16, dtype=dtype)
    leaf = d["logits"].requires_grad_()
    want = torch.autograd.grad(3 * topk_kl(leaf * 1, d["ids"], d["logprobs"], **kwargs(d)), leaf)[0]
    x = leaf * 1
    at = x.data_ptr()
    loss = topk_kl(x, d["ids"], d["logprobs"], **kwargs(d), inplace=True)
    (3 * loss).backward()
    assert x.data_ptr() == at
    assert torch.equal(x.detach(), want)  # where the logits were
    assert torch.equal(leaf.grad, want)


def test_a_gradient_over_the_logits_is_given_once():
    d = make_inputs(2, 50, 4)
    leaf = d["logits"].requires_grad_()
    loss = topk_kl(leaf * 1, d["ids"], d["logprobs"], **kwargs(d), inplace=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_logits_that_others_need_are_not_lost_in_silence():
    d = make_inputs(2, 50, 4)
    x = d["logits"].requires_grad_().exp()  # exp keeps its output for its own backward
    loss = topk_kl(x, d["ids"], d["logprobs"], **kwargs(d), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_gradients_the_logits_stay():
    d = make_inputs(2, 50, 4)
    before = d["logits"].clone()
    topk_kl(d["logits"], d["ids"], d["logprobs"], **kwargs(d), inplace=True)
    with torch.no_grad():
        topk_kl(d["logits"].requires_grad_(), d["ids"], d["logprobs"], **kwargs(d), inplace=True)
    assert torch.equal(d["logits"], before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: x.half() * 1, TypeError, "no float16"),
        (lambda x: x, ValueError, "a leaf of the graph"),
        (lambda x: (x * 1)[:1].expand(2, -1), ValueError, "rows of its own"),
    ],
    ids=["fp16", "leaf", "expanded"],
)
def test_logits_that_cannot_be_overwritten_are_refused(make, error, message):
    d = make_inputs(2, 50, 4)
    x = make(d["logits"].requires_grad_())
    with pytest.raises(error, match=message):
        topk_kl(x, d["ids"], d["logprobs"], **kwargs(d), inplace=True)


def test_opcheck_of_the_op_in_place():
    d = make_inputs(3, 11, 4)
    args = (d["logits"], d["ids"], d["logprobs"], d["tail_stat"], d["weight"], d["labels"])
    args = (*args, 2.0, "bucket", "forward", 1.0, 0.5, -100, True)
    torch.library.opcheck(torch.ops.kdcache.topk_kl_.default, args)


def test_in_place_compiles_as_one_graph():
    torch._dynamo.reset()
    d = make_inputs(3, 50, 4)
    x = d["logits"].requires_grad_()

    def step(y):
        return 3 * topk_kl(2 * y, d["ids"], d["logprobs"], **kwargs(d), inplace=True)

    step(x).backward()
    want, x.grad = x.grad, None
    torch.compile(step, backend="aot_eager", fullgraph=True)(x).backward()
    assert torch.allclose(x.grad, want)
