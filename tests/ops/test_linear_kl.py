"""linear_kl and its row kernels against dense float64 formulas; what it shares with linear_topk_kl
is tested in test_linear_heads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kdcache_kernels import dequantize_rows, linear_kl, linear_topk_kl, quantize_rows
from kdcache_kernels.linear_kl import _numba, reference
from kdcache_kernels.linear_kl.reference import make_inputs
from kdcache_kernels.linear_kl.spec import Spec

BACKENDS = {"numba": _numba.dense_kl, "reference": reference.dense_kl}
DIVERGENCES = ("forward", "reverse", "js")
NAMES = ("hidden", "weight", "bias")
backends = pytest.mark.parametrize("backend", BACKENDS)
divergences = pytest.mark.parametrize("divergence", DIVERGENCES)
temperatures = pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])


def divergence_rows(student, teacher, temperature, kind):
    """T^2 D of rows of logits by torch.nn.functional.kl_div."""
    lq, lp = ((x / temperature).log_softmax(1) for x in (student, teacher))
    lm = torch.logaddexp(lp, lq) - math.log(2)

    def kl(a, b):
        each = functional.kl_div(b, a, reduction="none", log_target=True)
        return each.masked_fill(a == -torch.inf, 0).sum(1)

    found = {
        "forward": lambda: kl(lp, lq),
        "reverse": lambda: kl(lq, lp),
        "js": lambda: (kl(lp, lm) + kl(lq, lm)) / 2,
    }
    return temperature**2 * found[kind]()


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


def assert_near(got, want, tol=3e-6):
    assert (got.double() - want.double()).abs().max() <= tol * (1 + want.double().abs().max())


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


def kernel(backend, logits, teacher, weight, labels=None, need_grad=True, **numbers):
    spec = Spec(
        **{
            "temperature": 1.0,
            "divergence": "forward",
            "soft_weight": 1.0,
            "hard_weight": 0.0,
            "ignore_index": -100,
            **numbers,
        }
    )
    gradient = logits.clone()
    loss, soft, hard = BACKENDS[backend](gradient, teacher.clone(), weight, labels, spec, need_grad)
    return loss, soft, hard, gradient


def rows(n=4, v=1271, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, v, generator=g), 3 * torch.randn(n, v, generator=g), torch.ones(n)


@backends
@divergences
def test_tokens_that_both_sides_ban_count_nothing(backend, divergence):
    student, teacher, weight = rows()
    want = kernel(backend, student[:, 9:], teacher[:, 9:], weight, divergence=divergence)
    student[:, :9], teacher[:, :9] = -torch.inf, -torch.inf
    loss, soft, _, gradient = kernel(backend, student, teacher, weight, divergence=divergence)
    assert_near(loss, want[0])
    assert_near(soft, want[1])
    assert_near(gradient[:, 9:], want[3])
    assert not gradient[:, :9].any()


@backends
def test_a_token_that_one_side_bans(backend):
    """Forward KL is infinite where the student bans; the teacher's ban only takes the mass away."""
    student, teacher, weight = rows()
    student[0, 3], teacher[1, 3] = -torch.inf, -torch.inf
    _, soft, _, gradient = kernel(backend, student, teacher, weight)
    assert soft.isinf().tolist() == [True, False, False, False]
    want = divergence_rows(student[1:].double(), teacher[1:].double(), 1.0, "forward")
    assert_near(soft[1:], want)
    assert gradient[1:].isfinite().all()
    _, soft, _, _ = kernel(backend, student, teacher, weight, divergence="reverse")
    assert soft.isinf().tolist() == [False, True, False, False]
    _, soft, _, gradient = kernel(backend, student, teacher, weight, divergence="js")
    assert soft.isfinite().all()
    assert gradient.isfinite().all()


@backends
@temperatures
def test_large_logits_keep_their_digits(backend, temperature):
    student, teacher, weight = rows()
    want = kernel(backend, student, teacher, weight, temperature=temperature)
    moved = kernel(backend, student + 1024, teacher - 1024, weight, temperature=temperature)
    exact = divergence_rows(
        (student + 1024).double(), (teacher - 1024).double(), temperature, "forward"
    )
    assert_near(moved[1], exact, 5e-6)
    assert_near(moved[3], want[3], 2e-4)  # what the inputs lost when they were moved


@backends
def test_rows_of_weight_zero_are_not_read(backend):
    student, teacher, weight = rows()
    labels = torch.tensor([1, 2, -7, 3])
    weight[2] = 0
    student[2], teacher[2] = math.nan, math.nan
    loss, soft, hard, gradient = kernel(backend, student, teacher, weight, labels, hard_weight=1.0)
    assert loss.isfinite()
    assert soft[2] == hard[2] == 0
    assert not gradient[2].any()
    assert gradient.isfinite().all()


@backends
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_unchecked_label_spoils_its_own_row(backend, temperature):
    student, teacher, weight = rows()
    labels = torch.tensor([1, 1271, -100, 3])
    _, soft, hard, gradient = kernel(
        backend, student, teacher, weight, labels, hard_weight=1.0, temperature=temperature
    )
    assert soft.isfinite().all()
    assert hard.isnan().tolist() == [False, True, False, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False, False]


@backends
def test_hard_labels_alone_do_not_see_an_infinite_divergence(backend):
    student, teacher, weight = rows()
    student[0, 3] = -torch.inf
    labels = torch.tensor([1, 2, 5, 3])
    loss, _, _, gradient = kernel(
        backend, student, teacher, weight, labels, soft_weight=0.0, hard_weight=1.0
    )
    assert_near(loss, functional.cross_entropy(student.double(), labels, reduction="sum"))
    assert gradient.isfinite().all()


@backends
def test_without_gradient_the_losses_are_the_same(backend):
    student, teacher, weight = rows()
    one = kernel(backend, student, teacher, weight)
    other = kernel(backend, student, teacher, weight, need_grad=False)
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    v=st.integers(2, 60),
    divergence=st.sampled_from(DIVERGENCES),
    temperature=st.sampled_from([1.0, 1.5, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_identities(n, v, divergence, temperature, seed):
    """Backends agree, losses are not negative, weight scales, rows of gradient sum to zero."""
    student, teacher, weight = rows(n, v, seed)
    numbers = {"divergence": divergence, "temperature": temperature}
    loss, soft, _, gradient = kernel("numba", student, teacher, weight, **numbers)
    other = kernel("reference", student.double(), teacher.double(), weight.double(), **numbers)
    assert_near(loss, other[0], 1e-5)
    assert_near(gradient, other[3], 1e-5)
    assert soft.min() > -1e-5
    assert_near(gradient.sum(1), torch.zeros(n))
    heavy = kernel("numba", student, teacher, 3 * weight, **numbers)
    assert_near(heavy[0], 3 * loss)
    assert_near(heavy[3], 3 * gradient)


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
        (
            {"teacher_hidden": torch.zeros(5, 25, requires_grad=True)},
            ValueError,
            "teacher_hidden gets no gradient",
        ),
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
