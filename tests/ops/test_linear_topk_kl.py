"""linear_topk_kl against float64 autograd through whole logits; what it shares with linear_kl is
tested in test_linear_heads."""

import pytest
import torch

from kdcache_kernels import linear_topk_kl, topk_kl
from kdcache_kernels.linear_topk_kl import reference
from kdcache_kernels.linear_topk_kl.reference import make_inputs
from kdcache_kernels.topk_kl.spec import Spec, Teacher

NAMES = ("hidden", "weight", "bias")


def options(d, temperature, **more):
    return {
        "tail_logmass": d["tail_logmass"],
        "tail_stat": d["tail_stat"] if temperature != 1 else None,
        "temperature": temperature,
        **more,
    }


def assert_near(got, want, tol=2e-6):
    assert (got.double() - want).abs().max() <= tol * (1 + want.abs().max())


def unfused(d, **more):
    """Loss and gradients in float64 by autograd through the logits."""
    leaves = [d[name].double().requires_grad_() for name in NAMES]
    hidden, weight, bias = leaves
    loss = topk_kl(
        hidden @ weight.t() + bias, d["ids"], d["logprobs"], weight=d["row_weight"], **more
    )
    return loss.detach(), torch.autograd.grad(loss, leaves)


def fused(d, **more):
    leaves = [d[name].clone().requires_grad_() for name in NAMES]
    loss = linear_topk_kl(*leaves, d["ids"], d["logprobs"], row_weight=d["row_weight"], **more)
    return loss.detach(), torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(
    ("tail", "divergence"),
    [
        ("bucket", "forward"),
        ("renormalize", "forward"),
        ("truncate", "forward"),
        ("bucket", "reverse"),
        ("bucket", "js"),
    ],
)
@pytest.mark.parametrize(
    ("v", "k", "pads"), [(331, 9, 0), (1271, 16, 3), (7, 7, 0)], ids=["odd", "pads", "k=v"]
)
def test_value_and_each_gradient_match_float64(tail, divergence, temperature, v, k, pads):
    d = make_inputs(5, v, 18, k, temperature=temperature, pads=pads)
    more = options(
        d, temperature, tail=tail, divergence=divergence, labels=d["labels"], hard_weight=0.3
    )
    loss, got = fused(d, **more, chunk_bytes=2 * 4 * 1280)
    want_loss, want = unfused(d, **more)
    assert_near(loss, want_loss, 2e-6 + 1e-6 * temperature**2)
    for one, other in zip(got, want, strict=True):
        assert_near(one, other, 3e-6)


@pytest.mark.parametrize("where", ["support", "outside", "ignored"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_labels_in_and_out_of_the_support(where, temperature):
    d = make_inputs(4, 331, 18, 9, temperature=temperature)
    if where == "support":
        d["labels"] = d["ids"][:, 2].clone()
    elif where == "outside":
        d["labels"] = (d["ids"].min(1).values - 1) % 331
        assert not (d["labels"][:, None] == d["ids"]).any()
    else:
        d["labels"][:] = -100
    more = options(d, temperature, labels=d["labels"], hard_weight=0.8)
    loss, got = fused(d, **more)
    want_loss, want = unfused(d, **more)
    assert_near(loss, want_loss, 1e-5)
    for one, other in zip(got, want, strict=True):
        assert_near(one, other, 3e-6)


def test_hard_labels_alone_are_cross_entropy():
    """A row of pads has no teacher, and soft_weight 0 asks for none."""
    d = make_inputs(6, 331, 18, 1)
    d["ids"][:], d["logprobs"][:] = -1, -torch.inf
    leaves = [d[name].clone().requires_grad_() for name in NAMES]
    loss = linear_topk_kl(
        *leaves,
        d["ids"],
        d["logprobs"],
        tail="renormalize",
        soft_weight=0.0,
        labels=d["labels"],
        hard_weight=1.0,
    )
    exact = [d[name].double().requires_grad_() for name in NAMES]
    logits = exact[0] @ exact[1].t() + exact[2]
    want = torch.nn.functional.cross_entropy(logits, d["labels"])
    assert_near(loss.detach(), want.detach())
    grads = zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(want, exact), strict=True)
    for one, other in grads:
        assert_near(one, other)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_reference_is_float64_autograd(temperature):
    """The oracle of the benchmarks, against the one here."""
    d = make_inputs(5, 331, 18, 9, dtype=torch.float64, temperature=temperature)
    rest = d["tail_logmass"] if temperature == 1 else d["tail_stat"]
    found = reference.linear_topk_kl(
        d["hidden"],
        d["weight"],
        d["bias"],
        Teacher(d["ids"], d["logprobs"], rest),
        d["row_weight"],
        d["labels"],
        Spec(temperature, "bucket", "forward", 1.0, 0.5, -100),
    )
    more = options(d, temperature, labels=d["labels"], hard_weight=0.5)
    want_loss, want = unfused(d, **more)
    assert_near(found[0], want_loss, 1e-12)
    for one, other in zip(found[1:], want, strict=True):
        assert_near(one, other, 1e-12)


def test_a_wrong_id_is_named_by_its_row_of_all():
    d = make_inputs(7, 40, 6, 5)
    d["ids"][5, 2] = 40
    more = options(d, 2.0, chunk_bytes=2 * 4 * 64)
    with pytest.raises(ValueError, match=r"row 5 .*vocabulary"):
        fused(d, **more)
    d["row_weight"][5] = 0  # a masked row may hold anything
    assert fused(d, **more)[0].isfinite()
    d["row_weight"][5], d["ids"][5, 2] = 1, d["ids"][5, 3]
    with pytest.raises(ValueError, match=r"row 5 .*merge duplicates"):
        fused(d, **more)


def test_unchecked_a_wrong_id_spoils_its_own_row():
    d = make_inputs(4, 40, 6, 5)
    d["ids"][1, 2] = 40
    _, soft, _ = linear_topk_kl(
        *(d[name] for name in NAMES),
        d["ids"],
        d["logprobs"],
        **options(d, 1.0),
        check_ids=False,
        return_rows=True,
    )
    assert soft.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(3, 4).long()}, "ids must be .* N = 5"),
        ({"logprobs": torch.zeros(5, 3)}, "logprobs must have shape"),
        ({"tail_stat": None}, "needs tail_stat"),
        ({"tail": "drop"}, "bucket, renormalize, truncate; got 'drop'"),
        ({"divergence": "js", "tail": "truncate"}, "needs the student's mass outside"),
    ],
)
def test_a_wrong_teacher_is_refused_as_by_topk_kl(change, message):
    d = make_inputs(5, 40, 6, 4)
    tensors = {name: x for name, x in change.items() if name in d and name != "tail_stat"}
    more = {name: x for name, x in change.items() if name not in tensors}
    with pytest.raises(ValueError, match=message):
        fused({**d, **tensors}, **{**options(d, 2.0), **more})
