"""The row kernels of linear_kl against float64, value and gradient apart, on every backend.

Triton is interpreted, or runs on a GPU if there is one.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from triton.runtime.interpreter import InterpreterBuilder

from kdcache_kernels._linear import chunk_buffer
from kdcache_kernels.linear_kl import _numba, _triton, reference
from kdcache_kernels.linear_kl.spec import Spec
from kdcache_kernels.topk_kl.spec import DIVERGENCES
from tests.ops.divergences import assert_near, divergence_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# The interpreter computes with NumPy, which warns of the infinities and NaN that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def triton(logits, teacher, *others):
    """In buffers as linear_kl has them, with NaN behind the rows' ends."""
    sides = []
    for side in (logits, teacher):
        padded = chunk_buffer(*side.shape, side.dtype, DEVICE)
        torch.as_strided(padded, (len(side), padded.stride(0)), padded.stride()).fill_(math.nan)
        sides.append(padded.copy_(side))
    rest = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in others]
    found = _triton.dense_kl(*sides, *rest)
    logits.copy_(sides[0])
    return [x.cpu() for x in found]


BACKENDS = {"numba": _numba.dense_kl, "reference": reference.dense_kl, "triton": triton}
backends = pytest.mark.parametrize("backend", BACKENDS)
divergences = pytest.mark.parametrize("divergence", DIVERGENCES)
temperatures = pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """A row of 1,271 takes Triton three blocks."""
    monkeypatch.setattr(_triton, "BLOCK", 512)


def kernel(
    backend, logits, teacher, weight, labels=None, need_grad=True, teacher_bias=None, **numbers
):
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
    loss, soft, hard = BACKENDS[backend](
        gradient, teacher.clone(), teacher_bias, weight, labels, spec, need_grad
    )
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
@divergences
def test_a_nan_of_either_side_spoils_its_row(backend, divergence, monkeypatch):
    for name, function in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
        # NumPy's maximum, which the interpreter takes, keeps the NaN that a GPU's drops.
        def call(self, left, right, function=function):
            return self.binary_op(left, right, function)

        monkeypatch.setattr(InterpreterBuilder, name, call)
    for side in range(2):
        *sides, weight = rows()
        sides[side][1, 5] = math.nan
        loss, soft, _, gradient = kernel(backend, *sides, weight, divergence=divergence)
        assert loss.isnan()
        assert soft.isnan().tolist() == [False, True, False, False]
        assert gradient.isnan().all(1).tolist() == [False, True, False, False]


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


@backends
@divergences
@temperatures
@pytest.mark.parametrize("hard_weight", [0.0, 0.7])
@pytest.mark.parametrize("v", [1, 61, 1271])
def test_value_and_gradient_match_float64(backend, divergence, temperature, hard_weight, v):
    student, teacher, weight = rows(v=v)
    weight, labels = weight * torch.tensor([0.5, 1.0, 0.0, 2.0]), torch.tensor([0, -100, 0, v - 1])
    numbers = {"divergence": divergence, "temperature": temperature, "hard_weight": hard_weight}
    found = kernel(backend, student, teacher, weight, labels, **numbers)
    wide = (x.double() for x in (student, teacher, weight))
    for got, want in zip(found, kernel("reference", *wide, labels, **numbers), strict=True):
        assert_near(got, want, 3e-6 * temperature)


@pytest.mark.parametrize("backend", ["numba", "triton"])
@pytest.mark.parametrize("noise", [1e-2, 1.0])
def test_jensen_shannon_to_a_near_teacher_keeps_its_digits(backend, noise):
    """A sum of two logarithms would have those of float32, of which 1e-5 nat leave three."""
    student, teacher, weight = rows()
    student = teacher + noise * student
    want = kernel("reference", student.double(), teacher.double(), weight.double(), divergence="js")
    _, soft, _, gradient = kernel(backend, student, teacher, weight, divergence="js")
    assert ((soft - want[1]).abs() / want[1]).max() < 1e-5
    assert (gradient - want[3]).abs().max() < 1e-5 * want[3].abs().max()


@pytest.mark.parametrize("align", [1, 8])
def test_16_bit_logits_and_rows_that_start_anywhere(align):
    student, teacher, weight = rows(v=1000 + align)
    student = student.bfloat16()
    found = kernel("triton", student, teacher, weight)
    want = kernel("reference", student.double(), teacher.double(), weight.double())
    assert_near(found[1], want[1])
    assert found[3].dtype == torch.bfloat16
    assert_near(found[3], want[3], 2.0**-7)  # the interpreter truncates where a GPU rounds
    sides = [x.to(DEVICE).contiguous() for x in (student.float(), teacher)]
    spec = Spec(1.0, "forward", 1.0, 0.0, -100)
    soft = _triton.dense_kl(*sides, None, weight.to(DEVICE), None, spec, True)[1]
    assert_near(soft.cpu(), want[1])
    assert_near(sides[0].cpu(), want[3])


def test_triton_without_rows():
    empty = torch.empty(0, 7, device=DEVICE)
    spec = Spec(1.0, "forward", 1.0, 0.0, -100)
    loss, soft, hard = _triton.dense_kl(empty, empty, None, empty[:, 0], None, spec, True)
    assert loss == 0
    assert soft.shape == hard.shape == (0,)


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


@backends
@divergences
def test_the_bias_of_the_teacher_is_added_to_its_logits(backend, divergence):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 1271, generator=generator) for _ in range(2))
    bias, weight = torch.randn(1271, generator=generator), torch.ones(3)
    want = kernel(backend, student, teacher + bias, weight, divergence=divergence)
    got = kernel(backend, student, teacher, weight, teacher_bias=bias, divergence=divergence)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)
