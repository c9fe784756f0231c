"""relation_kl and attention_mse in Triton against float64: interpreted, or on a GPU if any."""

import math

import pytest
import torch

from kdcache_kernels.relation_kl import _triton, reference
from kdcache_kernels.relation_kl.reference import make_inputs
from kdcache_kernels.relation_kl.spec import KINDS, How, Teacher

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [7, 1, 33, 70, 16]
HEADS = 3
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3}
if DEVICE == "cuda":  # interpreted, a product takes bfloat16 for whole numbers
    TOLERANCE[torch.bfloat16] = 2e-2
DTYPES = [
    dtype if dtype == torch.float32 else pytest.param(dtype, marks=pytest.mark.slow)
    for dtype in TOLERANCE
]

# The interpreter computes with NumPy, which warns of the infinities and NaN that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def compared(function, x, kind, device, *, keys, need=(True, True)):
    """The loss of some arguments and the gradients of both sides, by a backend."""
    x = {name: v.to(device) for name, v in x.items()}
    width, theirs = x["student"].shape[1] // HEADS, x["teacher"].shape[1] // HEADS
    how = How(kind, HEADS, width**-0.5, theirs**-0.5, 2**20, need[0], keys and need[1])
    teacher = Teacher(x["teacher"], x["teacher_keys"] if keys else None)
    own = x["student_keys"] if keys else None
    found = function(x["student"], own, teacher, x["lengths"].tolist(), x["weight"], how)
    return [t.cpu() for t in found]


def exact(x):
    return {name: v.double() if v.is_floating_point() else v for name, v in x.items()}


def assert_near(found, wanted, tolerance):
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        if want.numel():
            assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_match_float64(kind, dtype, keys):
    x = make_inputs(LENGTHS, 60, 24, dtype=dtype)
    found = compared(_triton.launch, x, kind, DEVICE, keys=keys)
    wanted = compared(reference.token_pairs, exact(x), kind, "cpu", keys=keys)
    assert_near(found, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_columns_beyond_one_product_and_single_gradients(kind):
    x = make_inputs([5, 18], 3 * 70, 3 * 130)
    for need in ((True, False), (False, True), (False, False)):
        found = compared(_triton.launch, x, kind, DEVICE, keys=True, need=need)
        wanted = compared(reference.token_pairs, exact(x), kind, "cpu", keys=True, need=need)
        assert_near(found, wanted, 5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_of_weight_zero_may_hold_anything_and_gets_exact_zeros(kind):
    x = make_inputs(LENGTHS, 24, 36)
    x["weight"][2] = 0
    wanted = compared(reference.token_pairs, exact(x), kind, "cpu", keys=True)
    for name in ("student", "teacher", "student_keys", "teacher_keys"):
        x[name][8:41] = math.nan
    found = compared(_triton.launch, x, kind, DEVICE, keys=True)
    assert_near(found, wanted, 5e-6)
    for gradient in found[1:]:
        assert not gradient[8:41].any()


def test_no_document_is_worth_nothing():
    x = make_inputs([], 24, 36)
    loss, *gradients = compared(_triton.launch, x, "scores", DEVICE, keys=True)
    assert loss == 0
    assert [g.shape for g in gradients] == [(0, 24), (0, 24)]


def test_longer_documents_than_its_registers_hold_run_pieces(monkeypatch):
    monkeypatch.setattr(_triton, "launch", None)
    x = make_inputs([_triton.LONGEST + 1, 3], 24, 36)
    found = compared(_triton.token_pairs, x, "scores", DEVICE, keys=False)
    wanted = compared(reference.token_pairs, exact(x), "scores", "cpu", keys=False)
    assert_near(found, wanted, 5e-6)
