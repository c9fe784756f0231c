"""topk_encode and quantize_rows: the teacher's side, against float64."""

import math

import pytest
import torch

from kdcache_kernels import dequantize_rows, quantize_rows, topk_encode, topk_kl
from kdcache_kernels.quantize_rows.reference import make_inputs as make_hidden
from kdcache_kernels.quantize_rows.reference import quantize_rows as reference_rows
from kdcache_kernels.topk_encode import reference
from kdcache_kernels.topk_encode.reference import make_inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def oracle(x, k, temperature):
    """Stable sort in float64: ids by decreasing logit, then by id."""
    logp = torch.log_softmax(x.double(), 1)
    ids = x.sort(dim=1, descending=True, stable=True).indices
    rest = logp.gather(1, ids[:, k:])
    top = logp.gather(1, ids[:, :k])
    return ids[:, :k], top, rest.logsumexp(1), (rest / temperature).logsumexp(1)


@dtypes
@pytest.mark.parametrize(
    ("n", "v", "k"), [(3, 7, 1), (3, 7, 7), (5, 1271, 64), (2, 30522, 100), (0, 7, 2)]
)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_matches_float64(dtype, n, v, k, temperature):
    x = make_inputs(n, v, dtype=dtype)
    ids, logprobs, mass, stat = topk_encode(x, k, stat_temperature=temperature)
    want = oracle(x, k, temperature)
    assert (ids.dtype, logprobs.dtype, mass.dtype) == (torch.int64, torch.float32, torch.float32)
    assert torch.equal(ids, want[0])
    for got, expected in zip((logprobs, mass, stat), want[1:], strict=True):
        assert torch.allclose(got.double(), expected, rtol=1e-6, atol=5e-6)


def test_equal_logits_keep_the_smaller_id():
    x = torch.tensor([[0.0, 1, 1, 2, 1, 1], [3, 3, 3, 3, 3, 3]])
    assert topk_encode(x, 3)[0].tolist() == [[3, 1, 2], [0, 1, 2]]
    assert topk_encode(torch.tensor([[-0.0, 0.0, -1.0]]), 1)[0].tolist() == [[0]]


@pytest.mark.parametrize("k", [3, 40])
def test_rows_of_few_values_keep_the_smaller_ids(k):
    x = torch.randint(0, 3, (6, 1271), generator=torch.Generator().manual_seed(0)).float()
    x[0], x[1, 5:] = 1.0, -math.inf
    assert torch.equal(topk_encode(x, k)[0], oracle(x, k, 2.0)[0])
    assert torch.equal(topk_encode(x.double(), k)[0], oracle(x, k, 2.0)[0])


def test_a_tiny_tail_is_not_lost():
    """1 - P is zero here in float32, the tail is e^-100."""
    x = torch.tensor([[0.0, 0.0, -100.0]])
    _, _, mass, stat = topk_encode(x, 2)
    assert mass.item() == pytest.approx(-100 - math.log(2), abs=1e-4)
    assert stat.item() == pytest.approx(-50 - math.log(2) / 2, abs=1e-4)


def test_blocks_do_not_change_the_answer(monkeypatch):
    x = make_inputs(7, 101, dtype=torch.bfloat16)
    whole = topk_encode(x, 9)
    monkeypatch.setattr(reference, "CPU_BLOCK_BYTES", 2 * 101 * 4)
    for got, want in zip(topk_encode(x, 9), whole, strict=True):
        assert torch.equal(got, want)


def test_input_is_left_alone_and_gets_no_gradient():
    x = make_inputs(4, 50).requires_grad_()
    before = x.detach().clone()
    outputs = topk_encode(x, 5)
    assert torch.equal(x.detach(), before)
    assert not any(y.requires_grad for y in outputs)


def test_strided_rows():
    x = make_inputs(8, 50)
    for view in (x[::2, 5:], x.t().contiguous().t()):
        for got, want in zip(topk_encode(view, 5), topk_encode(view.clone(), 5), strict=True):
            assert torch.equal(got, want)


def test_banned_classes():
    x = make_inputs(2, 9)
    x[:, 2:] = -math.inf
    ids, logprobs, mass, _ = topk_encode(x, 3)
    assert sorted(ids[0, :2].tolist()) == [0, 1]
    assert logprobs[0, 2] == -math.inf
    assert mass.tolist() == [-math.inf] * 2


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_is_refused(poison):
    x = make_inputs(4, 9)
    x[2, 3] = poison
    with pytest.raises(ValueError, match="row 2"):
        topk_encode(x, 3)
    x[2] = -math.inf
    with pytest.raises(ValueError, match="row 2"):
        topk_encode(x, 3)


@pytest.mark.parametrize(
    ("x", "k", "kwargs", "error"),
    [
        (torch.zeros(2, 5), 0, {}, ValueError),
        (torch.zeros(2, 5), 6, {}, ValueError),
        (torch.zeros(5), 1, {}, ValueError),
        (torch.zeros(2, 5).long(), 1, {}, TypeError),
        (torch.zeros(2, 5), 1, {"stat_temperature": 0.0}, ValueError),
    ],
)
def test_wrong_encode_arguments(x, k, kwargs, error):
    with pytest.raises(error, match="must"):
        topk_encode(x, k, **kwargs)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_is_encoded_is_a_fixed_point_of_topk_kl(temperature):
    x = make_inputs(4, 1271)
    ids, logprobs, mass, stat = topk_encode(x, 16)
    x.requires_grad_()
    loss = topk_kl(x, ids, logprobs, tail_logmass=mass, tail_stat=stat, temperature=temperature)
    loss.backward()
    assert loss.abs() < 2e-6
    assert x.grad.abs().max() < 1e-6


@dtypes
@pytest.mark.parametrize("group", [None, 1, 16, 48])
def test_codes_are_within_half_a_step(dtype, group):
    x = make_hidden(5, 48, dtype=dtype)
    codes, scale = quantize_rows(x, group)
    assert codes.dtype == torch.int8
    assert codes.shape == x.shape
    assert scale.dtype == torch.float16
    assert scale.shape == ((5,) if group is None else (5, 48 // group))
    step = scale.double().view(5, -1).repeat_interleave(group or 48, 1)
    # the scale was rounded before the codes: the largest magnitude may fall 0.07 step short
    error = (dequantize_rows(codes, scale).double() - x.double()).abs()
    assert (error <= 0.57 * step).all()
    assert codes.abs().max() <= 127


@dtypes
@pytest.mark.parametrize("group", [1, 16, 48])
def test_codes_and_scales_are_those_of_the_reference(dtype, group):
    x = torch.cat([make_hidden(40, 96, dtype=dtype)[:, ::2], torch.zeros(1, 48, dtype=dtype)])
    x[7, :16] = torch.arange(16) / 2  # halves of the step 1/16: ties
    x[7, 0] = 127 / 16
    for found, wanted in zip(quantize_rows(x, group), reference_rows(x, group), strict=True):
        assert torch.equal(found, wanted)
    strided = x.repeat(1, 2)[:, 48:]
    assert torch.equal(quantize_rows(strided, group)[0], quantize_rows(x, group)[0])


def test_codes_use_the_stored_scale():
    x = make_hidden(64, 96)
    codes, scale = quantize_rows(x)
    want = (x / scale.float()[:, None]).round().clamp(-127, 127)
    assert torch.equal(codes.float(), want)


def test_zero_rows_give_zero_scale_and_codes():
    x = make_hidden(3, 8)
    x[1] = 0
    codes, scale = quantize_rows(x)
    assert scale[1] == 0
    assert not codes[1].any()
    assert not dequantize_rows(codes, scale)[1].any()


@pytest.mark.parametrize("size", [1e-7, 3e-6, 1.1e-5, 1e-4])
def test_scales_among_float16_subnormals_do_not_clip(size):
    x = torch.linspace(-size, size, 64)[None]
    codes, scale = quantize_rows(x)
    assert (dequantize_rows(codes, scale) - x).abs().max() <= 0.57 * scale.float()


def test_every_float16_scale_is_rounded_to_as_by_torch():
    halves = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).float()
    middles = 127 * (halves[1:] + halves[:-1]) / 2
    tops = [127 * halves, middles]
    tops += [torch.nextafter(middles, torch.tensor(to)) for to in (0.0, math.inf)]
    x = torch.cat(tops)[:, None]
    for found, wanted in zip(quantize_rows(x), reference_rows(x, 1), strict=True):
        assert torch.equal(found.view(-1), wanted.view(-1))


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e7])
def test_rows_that_do_not_fit_are_named(poison):
    x = make_hidden(4, 8)
    x[2, 5] = poison
    with pytest.raises(ValueError, match="row 2"):
        quantize_rows(x, 4)


def test_wrong_quantize_arguments():
    with pytest.raises(ValueError, match="divide H = 8; got 3"):
        quantize_rows(torch.zeros(2, 8), 3)
    with pytest.raises(ValueError, match="2-D"):
        quantize_rows(torch.zeros(8))
    with pytest.raises(TypeError, match="must be one of"):
        quantize_rows(torch.zeros(2, 8).long())
    with pytest.raises(TypeError, match="codes must be one of int8"):
        dequantize_rows(torch.zeros(2, 8), torch.zeros(2))
    with pytest.raises(ValueError, match="G dividing H = 8"):
        dequantize_rows(torch.zeros(2, 8).to(torch.int8), torch.zeros(2, 3))


@pytest.mark.parametrize("shift", [0.0, 1e3, -2e5, 5e5, -3e6, 2e7])
@pytest.mark.parametrize("temperature", [1.0, 0.25, 2.0, 7.9, 1000.0])
def test_rows_far_from_zero_keep_their_digits(shift, temperature):
    """Of so large logits a float32 has few digits: what they are is what counts."""
    x = (make_inputs(4, 9001) + torch.tensor([0.0, -60.0, 3.0, 500.0])[:, None]) + shift
    x[1, 4096:] -= 200.0
    x[2, :4096] = -math.inf
    want = oracle(x, 5, temperature)[1:]
    for got, expected in zip(
        topk_encode(x, 5, stat_temperature=temperature)[1:], want, strict=True
    ):
        assert torch.allclose(got.double(), expected, rtol=1e-6, atol=5e-6)


def test_a_temperature_without_end_counts_the_rest():
    *_, stat = topk_encode(torch.tensor([[1.0, 2.0, 3.0, -1.0]]), 1, stat_temperature=1e38)
    assert stat.item() == pytest.approx(math.log(3))
