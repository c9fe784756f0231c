"""hidden_mse, quantize_rows and topk_encode in Triton: interpreted, or on a GPU if there is one."""

import math

import pytest
import torch

from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels.hidden_mse import _triton as triton_mse
from kdcache_kernels.hidden_mse import reference as mse
from kdcache_kernels.quantize_rows import _triton as triton_quantize
from kdcache_kernels.quantize_rows import reference as quantize
from kdcache_kernels.topk_encode import _triton as triton_encode
from kdcache_kernels.topk_encode import reference as encode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The interpreter computes with NumPy, which warns of the infinities and NaN that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter truncates float32 to bfloat16 where a GPU rounds.
BF16_STEP = 2.0**-8 if DEVICE == "cuda" else 2.0**-7


def check_mse(d, normalize, alike=False):
    """Loss and gradient against those of float64; masked rows may hold anything."""
    moved = [None if x is None else x.to(DEVICE) for x in d.values()]
    if alike:  # one weight in memory, seen by every row
        moved[-1] = moved[-1][:1].expand(len(moved[-1]))
    loss, gradient = (x.cpu() for x in triton_mse.hidden_mse(*moved, normalize, True))
    student, codes, scale, weight = d.values()
    want_loss, want = mse.hidden_mse(
        student.double(), codes, scale, weight.double(), normalize, True
    )
    step = BF16_STEP if student.dtype == torch.bfloat16 else 1e-5
    assert gradient.dtype == gradient_dtype(student)
    assert (loss - want_loss).abs() <= 1e-6 * (1 + want_loss)
    assert ((gradient.double() - want).abs() <= step * want.abs() + 1e-6 * want.abs().max()).all()
    return gradient


@pytest.mark.parametrize("normalize", triton_mse.MODES)
@pytest.mark.parametrize(
    ("n", "h", "groups"),
    [(1, 1, 0), (5, 385, 0), (5, 384, 3), (3, 100, 4), (9, 768, 6)],
    ids=["one", "odd", "groups", "uneven", "bert"],
)
def test_hidden_mse_matches_float64(normalize, n, h, groups):
    check_mse(mse.make_inputs(n, h, groups=groups), normalize)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "codes",
    [torch.int8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32],
    ids=str,
)
def test_hidden_mse_of_every_dtype(dtype, codes):
    check_mse(mse.make_inputs(4, 130, dtype=dtype, codes_dtype=codes), "layernorm")


def test_every_e4m3_byte_means_what_torch_says():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[:, None]
    student, weight = torch.zeros(256, 1, device=DEVICE), torch.ones(256, device=DEVICE)
    gradient = triton_mse.hidden_mse(student, codes.to(DEVICE), None, weight, "none", True)[1]
    assert torch.equal(gradient.cpu().nan_to_num(7e5), (-2 * codes.float()).nan_to_num(7e5))


@pytest.mark.parametrize("normalize", triton_mse.MODES)
@pytest.mark.parametrize("codes", [torch.int8, torch.float32], ids=str)
def test_masked_hidden_rows_are_not_read_and_get_exact_zeros(normalize, codes):
    d = mse.make_inputs(6, 70, codes_dtype=codes)
    for i in (0, 4):
        d["weight"][i] = 0
        d["student"][i] = math.nan
        d["codes"][i] = -128 if codes == torch.int8 else math.nan
        if d["scale"] is not None:
            d["scale"][i] = math.nan
    assert not check_mse(d, normalize)[[0, 4]].any()
    d["weight"].zero_()
    assert not check_mse(d, normalize).any()


@pytest.mark.parametrize("normalize", triton_mse.MODES)
@pytest.mark.parametrize("codes", [torch.int8, torch.float32], ids=str)
def test_rows_of_one_weight_are_those_of_equal_weights(normalize, codes):
    d = mse.make_inputs(7, 70, codes_dtype=codes)
    d["weight"].fill_(0.3)
    assert torch.equal(check_mse(d, normalize, alike=True), check_mse(d, normalize))
    d["student"][2] = math.nan
    d["weight"].zero_()
    assert not check_mse(d, normalize, alike=True).any()


@pytest.mark.parametrize("normalize", triton_mse.MODES)
def test_hidden_rows_of_zeros_and_blocks_of_scale_zero(normalize):
    d = mse.make_inputs(4, 96, groups=3)
    d["student"][1] = 0
    d["scale"][2, 1] = 0
    d["scale"][3] = 0
    gradient = check_mse(d, normalize)
    assert gradient.isfinite().all()


def test_hidden_rows_at_any_stride():
    d = mse.make_inputs(6, 60, dtype=torch.bfloat16)
    want = check_mse(d, "l2")
    d["student"] = torch.cat([d["student"], torch.full((6, 7), math.nan).bfloat16()], 1)[:, :60]
    d["codes"] = d["codes"].t().contiguous().t()
    assert torch.equal(check_mse(d, "l2"), want)


def test_hidden_mse_without_gradient_or_rows():
    d = mse.make_inputs(4, 60)
    moved = [None if x is None else x.to(DEVICE) for x in d.values()]
    loss, gradient = triton_mse.hidden_mse(*moved, "none", False)
    assert gradient.shape == (0, 60)
    assert torch.allclose(loss.cpu(), mse.hidden_mse(*d.values(), "none", False)[0])
    assert triton_mse.hidden_mse(*(x[:0] for x in moved), "none", True)[0] == 0


def test_rows_too_wide_for_a_program_run_in_torch():
    check_mse(mse.make_inputs(1, 16385), "none")
    x = quantize.make_inputs(1, 16385).to(DEVICE)
    assert triton_quantize.quantize_rows(x, 16385)[0].shape == (1, 16385)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("h", "group"), [(1, 1), (385, 385), (384, 128), (100, 25)])
def test_quantized_rows_are_those_of_torch(dtype, h, group):
    x = quantize.make_inputs(6, h, dtype=dtype)
    x[1], x[2], x[3] = 0, x[2] * 1e-6, -x[3].abs()
    x = torch.cat([x, x], 1)[:, :h]
    codes, scale = (y.cpu() for y in triton_quantize.quantize_rows(x.to(DEVICE), group))
    want_codes, want_scale = quantize.quantize_rows(x, group)
    assert torch.equal(scale, want_scale)
    assert torch.equal(codes, want_codes)


def test_halves_are_rounded_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], device=DEVICE)
    codes, scale = triton_quantize.quantize_rows(x, 8)
    assert scale.item() == 1
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf, 1e9])
def test_rows_that_no_scale_fits_are_refused(bad):
    x = quantize.make_inputs(4, 100)
    x[2, 7] = bad
    with pytest.raises(ValueError, match="row 2 is not"):
        triton_quantize.quantize_rows(x.to(DEVICE), 25)


def check_encode(x, k, temperature):
    got = [y.cpu() for y in triton_encode.topk_encode(x.to(DEVICE), k, temperature)]
    want = encode.topk_encode(x.double(), k, temperature)
    assert torch.equal(got[0], want[0])
    for y, z in zip(got[1:], want[1:], strict=True):
        assert torch.allclose(y.double(), z.double(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("n", "v", "k", "temperature"),
    [(1, 1, 1, 2.0), (3, 7, 7, 2.0), (9, 1271, 16, 2.0), (2, 9000, 64, 1.0), (2, 500, 3, 3.0)],
)
def test_encoded_rows_are_those_of_float64(dtype, n, v, k, temperature):
    check_encode(encode.make_inputs(n, v, dtype=dtype), k, temperature)


def test_among_equal_logits_the_smaller_ids_are_kept():
    x = torch.zeros(3, 9000)
    x[1, 8000:] = 1  # more than fit, in a later block
    x[2, ::7] = 1
    x[2, 4000:4003] = 2
    check_encode(x, 10, 2.0)


def test_banned_and_huge_logits_are_encoded():
    x = encode.make_inputs(4, 300)
    x[0, 5:] = -math.inf  # fewer classes than k
    x[1] += 1e4
    x[2, 8:] = -1e4
    x[3, ::2] = -math.inf
    check_encode(x, 8, 2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_shows_in_its_total(bad):
    x = encode.make_inputs(3, 300)
    x[1, 40] = bad
    x[2] = -math.inf
    totals = triton_encode.topk_encode(x.to(DEVICE), 8, 2.0)[4]
    assert totals.isfinite().tolist() == [True, False, False]


def test_encoded_rows_at_any_stride():
    x = encode.make_inputs(8, 31)
    check_encode(torch.cat([x[:, :2], x, x[:, :4]], 1)[:, 2:33], 5, 2.0)
    check_encode(x.t().contiguous().t(), 5, 2.0)
