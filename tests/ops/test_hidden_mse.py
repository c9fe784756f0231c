"""hidden_mse: every backend against float64 torch, value and gradient apart."""

import math
import sys

import pytest
import torch

from kdcache_kernels import hidden_mse
from kdcache_kernels.hidden_mse import _numba, reference
from kdcache_kernels.hidden_mse.reference import make_inputs

module = sys.modules["kdcache_kernels.hidden_mse"]  # the package has the op under its name
BACKENDS = {"numba": _numba.hidden_mse, "reference": reference.hidden_mse}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CODES = (torch.int8, *DTYPES, torch.float8_e4m3fn)
NORMALIZE = ("none", "l2", "layernorm")
LAYERS = {"student": torch.zeros(1, 3, 8), "codes": torch.zeros(1, 3, 8).to(torch.int8)}
backends = pytest.mark.parametrize("backend", BACKENDS)
normalizes = pytest.mark.parametrize("normalize", NORMALIZE)


def normalized(x, normalize):
    if normalize == "l2":
        return torch.nn.functional.normalize(x, dim=1)
    if normalize == "layernorm":
        return torch.nn.functional.layer_norm(x, x.shape[1:], eps=1e-12)
    return x


def oracle(d, normalize):
    s = d["student"].double().clone().requires_grad_()
    t = d["codes"].double()
    if d["scale"] is not None:
        groups = d["scale"].view(len(t), -1).double()
        t = t * groups.repeat_interleave(t.shape[1] // groups.shape[1], 1)
    live = d["weight"] != 0
    y, z = normalized(s[live], normalize), normalized(t[live], normalize)
    loss = (d["weight"][live].double() * ((y - z) ** 2).mean(1)).sum()
    loss.backward()
    return loss.detach(), s.grad


def run(backend, d, normalize):
    args = (d["student"], d["codes"], d["scale"], d["weight"])
    return BACKENDS[backend](*args, normalize, True)


def assert_near(got, want, tol=5e-6):
    assert (got.double() - want).abs().max() <= tol * (1e-3 + want.abs().max())


@backends
@normalizes
@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize(
    ("n", "h", "groups"), [(1, 1, 0), (5, 48, 3), (3, 127, 0), (2, 768, 6), (4, 7, 7)]
)
def test_value_and_gradient_match_float64(backend, normalize, codes, n, h, groups):
    d = make_inputs(n, h, groups=groups, codes_dtype=codes)
    loss, gradient = run(backend, d, normalize)
    want_loss, want = oracle(d, normalize)
    if h > 1:  # a layer norm over one column is 0 / epsilon
        assert_near(loss, want_loss)
        assert_near(gradient, want)
    else:
        assert loss.isfinite()


@backends
@normalizes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_torch(backend, normalize, dtype):
    d = make_inputs(6, 127, dtype=dtype)
    loss, gradient = run(backend, d, normalize)
    want_loss, want = oracle(d, normalize)
    s = d["student"].clone().requires_grad_()
    t = (d["codes"] * d["scale"][:, None].float()).to(dtype)
    rows = ((normalized(s, normalize) - normalized(t, normalize)) ** 2).float().mean(1)
    plain = (d["weight"] * rows).sum()
    plain.backward()
    assert (loss - want_loss).abs() <= 2 * (plain.detach() - want_loss).abs() + 1e-5
    assert (gradient - want).abs().max() <= 2 * (s.grad - want).abs().max() + 1e-6


@backends
@normalizes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_rows_are_not_read_and_get_exact_zeros(backend, normalize, dtype):
    for codes in (torch.int8, torch.float16):
        d = make_inputs(5, 48, groups=3, dtype=dtype, codes_dtype=codes)
        for i in (0, 3):
            d["weight"][i] = 0
            d["student"][i] = math.nan
            (d["codes"] if d["scale"] is None else d["scale"])[i] = math.nan
        loss, gradient = run(backend, d, normalize)
        want_loss, want = oracle(d, normalize)
        assert torch.equal(gradient[[0, 3]], torch.zeros_like(gradient[[0, 3]]))
        assert_near(loss, want_loss)
        assert_near(gradient, want, 1e-2 if dtype == torch.bfloat16 else 5e-6)


@backends
@normalizes
def test_all_rows_masked_give_zero(backend, normalize):
    d = make_inputs(3, 8)
    d["weight"].zero_()
    d["student"].fill_(math.nan)
    loss, gradient = run(backend, d, normalize)
    assert loss == 0
    assert not gradient.any()


@backends
@normalizes
def test_zero_rows_are_finite(backend, normalize):
    d = make_inputs(3, 8)
    d["student"][0] = 0
    d["scale"][1] = 0
    loss, gradient = run(backend, d, normalize)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if normalize == "l2":
        assert not gradient[0].any()


@backends
@normalizes
def test_a_perfect_student_has_no_gradient(backend, normalize):
    d = make_inputs(3, 96, groups=2)
    d["student"] = reference.decode(d["codes"], d["scale"], torch.float32)
    loss, gradient = run(backend, d, normalize)
    assert loss < 1e-12
    assert gradient.abs().max() < 1e-7


@backends
def test_nan_in_a_live_row_is_not_hidden(backend):
    d = make_inputs(3, 8)
    d["student"][1, 2] = math.nan
    loss, gradient = run(backend, d, "none")
    assert loss.isnan()
    assert gradient.isnan().any(1).tolist() == [False, True, False]


@backends
@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("view", ["sliced", "transposed", "columns"])
def test_any_layout(backend, codes, view):
    wide = make_inputs(8, 24, codes_dtype=codes)
    cut = {
        "sliced": lambda x: x[::2],
        "transposed": lambda x: x.t().contiguous().t(),
        "columns": lambda x: x[:, 3:20],
    }[view]
    d = {**wide, "student": cut(wide["student"]), "codes": cut(wide["codes"])}
    n = len(d["student"])
    d["scale"] = None if wide["scale"] is None else wide["scale"][::2].repeat(2)[:n]
    d["weight"] = wide["weight"].repeat_interleave(2)[::2][:n]
    loss, gradient = run(backend, d, "none")
    want_loss, want = oracle(d, "none")
    assert_near(loss, want_loss)
    assert_near(gradient, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_output_and_accumulation(dtype):
    d = make_inputs(6, 48, dtype=dtype)
    x = d["student"].requires_grad_()
    (0.5 * hidden_mse(x, d["codes"], d["scale"], weight=d["weight"])).backward()
    whole, x.grad = x.grad, None
    for part in (slice(0, 2), slice(2, 6)):
        loss = hidden_mse(x[part], d["codes"][part], d["scale"][part], weight=d["weight"][part])
        (0.5 * loss).backward()
    assert torch.equal(x.grad, whole)


def test_default_weight_is_the_mean_of_mse_loss():
    d = make_inputs(6, 48, codes_dtype=torch.float32)
    want = torch.nn.functional.mse_loss(d["student"], d["codes"])
    assert torch.allclose(hidden_mse(d["student"], d["codes"]), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layers", [0, 2])
def test_few_elements_are_what_the_kernel_makes_of_them(dtype, layers, monkeypatch):
    for codes, groups in ((torch.int8, 0), (torch.int8, 3), *((kind, 0) for kind in CODES[1:])):
        d = make_inputs(6, 48, groups=groups, dtype=dtype, codes_dtype=codes)
        if layers:
            d = {k: None if x is None else x.unflatten(0, (layers, -1)) for k, x in d.items()}
        x = d["student"].requires_grad_()
        args = (x, d["codes"], d["scale"])
        for weight in (None, d["weight"]):
            few = hidden_mse(*args, weight=weight)
            with monkeypatch.context() as patch:
                for most in ("MOST", "WEIGHTED"):
                    patch.setattr(module, most, 0)
                patch.setattr(module, "FEW", {})
                ours = hidden_mse(*args, weight=weight)
            assert few.dtype == ours.dtype == torch.float32
            assert_near(few.detach(), ours.detach().double())
            got, want = (torch.autograd.grad(1024 * loss, x)[0] for loss in (few, ours))
            assert got.dtype == want.dtype == dtype
            assert_near(got, want.double(), 5e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("layers", [0, 5])
def test_few_rows_of_weight_zero_may_hold_anything(layers):
    for name in ("student", "scale"):
        d = make_inputs(5, 48, groups=3)
        d["weight"][2] = 0
        want = oracle(d, "none")
        d[name][2] = math.nan
        if layers:
            d = {k: x.unflatten(0, (layers, -1)) for k, x in d.items()}
        x = d["student"].requires_grad_()
        loss = hidden_mse(x, d["codes"], d["scale"], weight=d["weight"])
        (gradient,) = torch.autograd.grad(loss, x)
        assert_near(loss.detach(), want[0])
        assert_near(gradient.view(5, 48), want[1])
        assert not gradient.view(5, 48)[2].any()


def test_no_rows_have_no_loss():
    x = torch.zeros(0, 8, requires_grad=True)
    loss = hidden_mse(x, torch.zeros(0, 8))
    loss.backward()
    assert loss == 0
    assert x.grad.shape == (0, 8)


def test_double_backward_is_refused():
    d = make_inputs(2, 8)
    x = d["student"].requires_grad_()
    loss = hidden_mse(x, d["codes"], d["scale"], weight=d["weight"], normalize="l2")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="hidden_mse has no double backward"):
        gradient.sum().backward()


@normalizes
def test_gradcheck_in_float64(normalize):
    d = make_inputs(3, 8, groups=2, dtype=torch.float64)
    x = d["student"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda y: hidden_mse(y, d["codes"], d["scale"], normalize=normalize), (x,)
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_opcheck(dtype):
    d = make_inputs(3, 8, groups=2, dtype=dtype)
    weight = d["weight"].to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = d["student"].requires_grad_()
    op = torch.ops.kdcache.hidden_mse.default
    torch.library.opcheck(op, (x, d["codes"], d["scale"], weight, "l2", True))
    torch.library.opcheck(op, (x.detach(), x.detach().float(), None, weight, "none", False))


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    d = make_inputs(3, 8)
    x = d["student"].requires_grad_()

    def step(y):
        return 3 * hidden_mse(2 * y, d["codes"], d["scale"], normalize="l2")

    step(x).backward()
    want, x.grad = x.grad, None
    torch.compile(step, backend="aot_eager", fullgraph=True)(x).backward()
    assert torch.allclose(x.grad, want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scale": None}, ValueError, "int8 codes need scale"),
        ({"codes": torch.zeros(3, 8)}, ValueError, "float codes take none"),
        ({"codes": torch.zeros(3, 8).long()}, TypeError, "codes must be one of int8"),
        ({"codes": torch.zeros(3, 4).to(torch.int8)}, ValueError, r"shape \(3, 8\)"),
        ({"scale": torch.ones(3, 3)}, ValueError, "G dividing H = 8"),
        ({"scale": torch.ones(2)}, ValueError, "N = 3"),
        ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "detach"),
        ({"normalize": "l1"}, ValueError, "none, l2, layernorm; got 'l1'"),
        ({"student": torch.zeros(1, 3, 8)}, ValueError, "flatten"),
        (LAYERS, ValueError, r"scale must be \[L, N\] or \[L, N, G\] with L, N = \[1, 3\]"),
        ({"weight": torch.ones(2)}, ValueError, r"weight must have shape \(3,\)"),
    ],
)
def test_wrong_arguments_say_what_to_do(change, error, message):
    d = make_inputs(3, 8)
    with pytest.raises(error, match=message):
        hidden_mse(**{**d, **change})


@pytest.mark.parametrize("groups", [0, 3])
def test_layers_in_one_launch_add_up(groups):
    layers = [make_inputs(5, 48, groups=groups, seed=seed) for seed in range(3)]
    stacked = {name: torch.stack([d[name] for d in layers]) for name in layers[0]}
    x = stacked["student"].requires_grad_()
    loss = hidden_mse(x, stacked["codes"], stacked["scale"], weight=stacked["weight"])
    loss.backward()
    parts = []
    for d, gradient in zip(layers, x.grad, strict=True):
        one = d["student"].requires_grad_()
        parts.append(hidden_mse(one, d["codes"], d["scale"], weight=d["weight"]))
        parts[-1].backward()
        assert torch.equal(gradient, one.grad)
    assert torch.allclose(loss, sum(parts))
