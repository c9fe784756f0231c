"""A teacher as it was loaded, or as it ran: its tensors may require gradients, and get none."""

from functools import partial

import pytest
import torch

from kdcache_kernels import (
    attention_mse,
    dequantize_rows,
    hidden_mse,
    layer_costs,
    linear_kl,
    linear_topk_kl,
    quantize_rows,
    relation_kl,
    topk_kl,
)
from kdcache_kernels.linear_kl.reference import make_inputs as make_heads
from kdcache_kernels.topk_kl.reference import make_inputs

N, V, H = 6, 90, 12


def sparse(temperature):
    d = make_inputs(N, V, 7, temperature=2.0)
    stat = "tail_logmass" if temperature == 1 else "tail_stat"
    return d["ids"], {name: d[name] for name in ("logprobs", stat)}


def of_topk_kl(temperature):
    ids, teacher = sparse(temperature)

    def loss(student, **teacher):
        return topk_kl(student["logits"], ids, temperature=temperature, **teacher)

    return loss, {"logits": torch.randn(N, V)}, teacher


def of_linear_topk_kl(temperature):
    ids, teacher = sparse(temperature)

    def loss(student, logprobs, **teacher):
        head = student["hidden"], student["weight"], None
        return linear_topk_kl(*head, ids, logprobs, temperature=temperature, **teacher)

    return loss, {"hidden": torch.randn(N, H), "weight": torch.randn(V, H)}, teacher


def of_linear_kl(codes):
    d = make_heads(N, V, H, 20)
    teacher = {name: d[name] for name in ("teacher_hidden", "teacher_weight", "teacher_bias")}
    fixed = {}
    if codes:
        fixed["teacher_hidden"], teacher["teacher_scale"] = quantize_rows(d["teacher_hidden"], 5)
        del teacher["teacher_hidden"]

    def loss(student, **teacher):
        return linear_kl(**student, **fixed, **teacher)

    return loss, {name: d[name] for name in ("hidden", "weight", "bias")}, teacher


def of_hidden_mse(codes, normalize):
    values = torch.randn(N, H)
    stored, scale = quantize_rows(values)
    assert dequantize_rows(stored, scale).shape == values.shape
    teacher = {"scale": scale.float()} if codes else {"codes": values}
    fixed = {"codes": stored} if codes else {}

    def loss(student, **teacher):
        return hidden_mse(student["states"], **fixed, **teacher, normalize=normalize)

    return loss, {"states": torch.randn(N, H)}, teacher


def of_pairs(op, keys):
    teacher = {"teacher": torch.randn(N, 2 * H)}
    student = {"student": torch.randn(N, H)}
    if keys:
        teacher["teacher_keys"], student["student_keys"] = torch.randn(N, 2 * H), torch.randn(N, H)

    def loss(student, **teacher):
        lengths = torch.tensor([2, N - 2])
        return op(lengths=lengths, heads=2, **student, **teacher)

    return loss, student, teacher


def of_layer_costs(codes):
    stored, scale = quantize_rows(torch.randn(N, H))
    teacher = {"scale": scale.float()} if codes else {"codes": torch.randn(N, H)}

    def loss(student, codes=stored, scale=None):
        scales = None if scale is None else [scale]
        return layer_costs([student["states"]], [codes], scales).sum()

    return loss, {"states": torch.randn(N, H)}, teacher


CASES = {
    "topk_kl": (of_topk_kl, 1.0),
    "topk_kl at 2": (of_topk_kl, 2.0),
    "linear_topk_kl": (of_linear_topk_kl, 1.0),
    "linear_topk_kl at 2": (of_linear_topk_kl, 2.0),
    "linear_kl": (of_linear_kl, False),
    "linear_kl of codes": (of_linear_kl, True),
    "hidden_mse": (partial(of_hidden_mse, normalize="l2"), False),
    "hidden_mse of codes": (partial(of_hidden_mse, normalize="l2"), True),
    "a mean": (partial(of_hidden_mse, normalize="none"), False),  # torch's own op
    "a mean of codes": (partial(of_hidden_mse, normalize="none"), True),
    "layer_costs": (of_layer_costs, False),
    "layer_costs of codes": (of_layer_costs, True),
    "relation_kl": (partial(of_pairs, relation_kl), False),
    "relation_kl of keys": (partial(of_pairs, relation_kl), True),
    "attention_mse": (partial(of_pairs, attention_mse), False),
    "attention_mse of keys": (partial(of_pairs, attention_mse), True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_teacher_that_requires_gradients_is_a_constant(case, dtype):
    torch.manual_seed(0)
    make, option = CASES[case]
    loss, student, teacher = make(option)
    leaves = {name: x.to(dtype).requires_grad_() for name, x in student.items()}
    wanted = loss(leaves, **teacher)
    gradients = torch.autograd.grad(wanted, leaves.values())
    loaded = {name: torch.nn.Parameter(x) for name, x in teacher.items()}
    ran = {name: 1 * x for name, x in loaded.items()}  # with a graph behind it
    for given in (loaded, ran):
        found = loss(leaves, **given)
        assert torch.equal(found, wanted)
        for one, other in zip(torch.autograd.grad(found, leaves.values()), gradients, strict=True):
            assert torch.equal(one, other)
        assert not loss({name: x.detach() for name, x in leaves.items()}, **given).requires_grad
    loss(leaves, **ran).backward()
    assert all(x.grad is None for x in loaded.values())
