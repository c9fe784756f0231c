"""attention_mse: documents of unlike lengths against float64 torch, in every form."""

import math

import pytest
import torch

from kdcache_kernels import attention_mse
from kdcache_kernels.attention_mse import reference
from kdcache_kernels.relation_kl.reference import make_inputs

LENGTHS = [7, 7, 33, 1, 12, 5, 70, 5]
HEADS = 6
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
FORMS = {
    "scores": {},
    "probabilities": {"of": "probabilities"},
    "together": {"together": True},
    "other heads": {"together": True, "teacher_heads": 4},
}
NAMES = ("student", "student_keys")


def run(x, function, *, keys, **options):
    """The loss and the gradients of `student`, and of `student_keys` where there are keys."""
    names = NAMES if keys else NAMES[:1]
    leaves = {name: x[name].detach().requires_grad_() for name in names}
    given = {"teacher": x["teacher"], "lengths": x["lengths"], "weight": x["weight"], **leaves}
    if keys:
        given["teacher_keys"] = x["teacher_keys"]
    loss = function(**given, heads=HEADS, **options)
    return loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))


def plain(*, lengths, heads, teacher_heads=None, student_keys=None, teacher_keys=None, **rest):
    """The reference, called as the op is."""
    return reference.attention_mse(
        student_keys=student_keys,
        teacher_keys=teacher_keys,
        lengths=lengths.tolist(),
        heads=(heads, teacher_heads or heads),
        **rest,
    )


def in_double(x):
    return {name: v.double() if v.is_floating_point() else v for name, v in x.items()}


def assert_near(found, wanted, tolerance):
    for got, want in zip(found, wanted, strict=True):
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradients_match_float64(form, dtype, keys):
    x = make_inputs(LENGTHS, 24, 36, dtype=dtype)
    exact = in_double(x)
    if dtype == torch.float64:
        x = exact
    found = run(x, attention_mse, keys=keys, **FORMS[form])
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    assert_near(found, run(exact, plain, keys=keys, **FORMS[form]), TOLERANCE[dtype])


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("noise", [1.0, 1e-4])
def test_long_documents_near_their_teacher_lose_no_digits(noise, keys):
    x = make_inputs(LENGTHS, 24, 24)
    for side in ("", "_keys"):
        x[f"student{side}"] = x[f"teacher{side}"] + noise * x[f"student{side}"]
    x["weight"] *= torch.tensor(LENGTHS) > 12  # of short ones rounded scores are compared
    found, wanted = run(x, attention_mse, keys=keys), run(in_double(x), plain, keys=keys)
    assert_near(found, wanted, 5e-6)


@pytest.mark.parametrize("noise", [0.2, 1e-2])
def test_turned_vectors_whose_scores_are_the_teachers_lose_no_digits(noise):
    """Of a sum of terms that cancel too few digits would be left."""
    x = make_inputs([70, 33], 24, 24)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    for side in ("", "_keys"):
        turned = (x[f"teacher{side}"].unflatten(1, (HEADS, 4)) @ turn).flatten(1)
        x[f"student{side}"] = turned + noise * x[f"student{side}"]
    found, wanted = run(x, attention_mse, keys=True), run(in_double(x), plain, keys=True)
    assert_near(found[:1], wanted[:1], 1e-5)
    assert_near(found[1:], wanted[1:], 1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_document_of_weight_zero_may_hold_anything_and_gets_exact_zeros(form):
    x = make_inputs(LENGTHS, 24, 36)
    x["weight"][1] = 0
    wanted = run(in_double(x), plain, keys=True, **FORMS[form])
    for name in ("student", "teacher", "student_keys", "teacher_keys"):
        x[name][7:14] = math.nan
    found = run(x, attention_mse, keys=True, **FORMS[form])
    assert_near(found, wanted, 5e-6)
    for gradient in found[1:]:
        assert not gradient[7:14].any()


def test_by_default_a_pair_of_tokens_counts_like_any_other():
    x = make_inputs(LENGTHS, 24, 36)
    found = attention_mse(x["student"], x["teacher"], x["lengths"], heads=HEADS)
    even = torch.full((len(LENGTHS),), 1 / sum(n * n for n in LENGTHS))
    torch.testing.assert_close(found, run({**x, "weight": even}, attention_mse, keys=False)[0])


def test_no_document_is_worth_nothing():
    student = torch.zeros(0, 24, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = attention_mse(student, torch.zeros(0, 36), none, heads=HEADS)
    loss.backward()
    assert loss == 0
    assert student.grad.shape == (0, 24)


def test_the_op_is_one_for_torch():
    x = make_inputs([3, 5], 24, 36)
    leaves = [x[name].requires_grad_() for name in NAMES]
    how = ("scores", HEADS, 0.5, 0.4, 2**20, True, True)
    given = (*leaves, x["teacher"], x["teacher_keys"], x["lengths"], x["weight"], *how)
    for name in ("attention_mse", "relation_kl"):
        kind = "divergence" if name == "relation_kl" else "scores"
        op = getattr(torch.ops.kdcache, name).default
        torch.library.opcheck(op, (*given[:6], kind, *how[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads must divide the columns of student, 24; got 5"),
        ({"teacher_heads": 5}, "heads must divide the columns of teacher, 36; got 5"),
        ({"teacher_heads": 4}, "teacher_heads must be heads, 6, .*; got 4: set together=True"),
        ({"of": "logits"}, "of must be one of scores, probabilities; got 'logits'"),
        ({"of": "probabilities", "together": True}, "together adds scores up"),
        ({"teacher_keys": None}, "give both, or neither"),
        ({"weight": torch.ones(3)}, r"weight must have shape \(8,\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    given = {**make_inputs(LENGTHS, 24, 36), "heads": HEADS, **change}
    with pytest.raises(ValueError, match=message):
        attention_mse(**given)
