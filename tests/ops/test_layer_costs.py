"""layer_costs: every backend against float64 torch, costs and gradient apart."""

import math

import pytest
import torch

from kdcache_kernels import layer_costs
from kdcache_kernels.layer_costs import _numba, _triton, reference
from kdcache_kernels.layer_costs.reference import make_inputs

# The interpreter computes with NumPy, which warns of the infinities and NaN that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FILES = {"numba": _numba, "reference": reference, "triton": _triton}
DEVICE = {"triton": "cuda" if torch.cuda.is_available() else "cpu"}
LAYERS = (3, 5)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter truncates float32 to bfloat16 where everything else rounds.
STEP = {torch.bfloat16: 2.0**-7}
backends = pytest.mark.parametrize("backend", FILES)


def oracle(d, flow):
    """Costs and gradients in float64, of rows that count."""
    live = d["weight"] != 0
    ours = [x[live].double().requires_grad_() for x in d["student"]]
    scales = d["scale"] or [None] * LAYERS[1]
    pairs = zip(d["codes"], scales, strict=True)
    theirs = [reference.decode(x, s, torch.float64)[live] for x, s in pairs]
    w = d["weight"][live].double()
    costs = torch.stack(
        [torch.stack([(w * (s - t).square().mean(1)).sum() for t in theirs]) for s in ours]
    )
    gradients = torch.autograd.grad((flow * costs).sum(), ours)
    whole = [x.new_zeros(x.shape, dtype=torch.float64) for x in d["student"]]
    for place, gradient in zip(whole, gradients, strict=True):
        place[live] = gradient
    return costs.detach(), whole


def check(backend, d, flow=None):
    flow = torch.rand(LAYERS) if flow is None else flow
    to = DEVICE.get(backend, "cpu")
    moved = [x.to(to) if torch.is_tensor(x) else [one.to(to) for one in x] for x in d.values()]
    costs = FILES[backend].layer_costs(*moved).cpu()
    gradients = FILES[backend].layer_costs_gradient(*moved, flow.to(to))
    want_costs, want = oracle(d, flow.double())
    assert costs.dtype == torch.float32
    assert ((costs - want_costs).abs() <= 2e-6 * want_costs.abs() + 1e-9).all()
    step = STEP.get(d["student"][0].dtype, 1e-5)
    for got, truth in zip(gradients, want, strict=True):
        off = (got.cpu().double() - truth).abs()
        assert (off <= step * truth.abs() + 2e-6 * truth.abs().max()).all()
    return gradients


@backends
@pytest.mark.parametrize(
    ("n", "h", "groups"), [(1, 1, 0), (5, 48, 3), (3, 127, 0), (7, 768, 6), (4, 7, 7)]
)
def test_costs_and_gradients_match_float64(backend, n, h, groups):
    check(backend, make_inputs(n, h, LAYERS, groups=groups))


@backends
def test_every_dtype_on_both_sides(backend):
    for dtype in FLOATS:
        for codes in (torch.int8, torch.float8_e4m3fn, *FLOATS):
            got = check(backend, make_inputs(3, 130, LAYERS, dtype=dtype, codes_dtype=codes))
            assert got[0].dtype == (torch.float32 if dtype == torch.float16 else dtype)


@backends
@pytest.mark.parametrize("codes", [torch.int8, torch.float32], ids=str)
def test_masked_rows_are_not_read_and_nothing_flows_where_the_plan_is_zero(backend, codes):
    d = make_inputs(6, 70, LAYERS, codes_dtype=codes)
    for i in (0, 4):
        d["weight"][i] = 0
        for x in (*d["student"], *d["scale"], *(d["codes"] if codes.is_floating_point else ())):
            x[i] = math.nan
    flow = torch.rand(LAYERS)
    flow[1] = flow[:, 2] = 0
    gradients = check(backend, d, flow)
    assert not any(x[[0, 4]].any() for x in gradients)
    assert not gradients[1].any()
    d["weight"].zero_()
    assert not any(x.any() for x in check(backend, d))


@backends
def test_rows_at_any_stride_and_none(backend):
    d = make_inputs(6, 60, LAYERS, dtype=torch.bfloat16)
    d["student"] = [torch.cat([x, torch.full_like(x, math.nan)], 1)[:, :60] for x in d["student"]]
    d["codes"] = [x.t().contiguous().t() for x in d["codes"]]
    check(backend, d)
    empty = [d["weight"][:0], *([x[:0] for x in d[n]] for n in ("student", "codes", "scale"))]
    assert not FILES[backend].layer_costs(*empty).any()
    gradients = FILES[backend].layer_costs_gradient(*empty, torch.rand(LAYERS))
    assert [x.shape for x in gradients] == [(0, 60)] * LAYERS[0]


def test_rows_too_wide_for_a_program_run_in_torch():
    check("triton", make_inputs(2, 16500, LAYERS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_op_is_differentiable_in_eager_and_compiled(dtype):
    d = make_inputs(5, 16, LAYERS, dtype=dtype)
    leaves = [x.requires_grad_() for x in d["student"]]
    flow = torch.rand(LAYERS)

    def loss(leaves):
        costs = layer_costs(leaves, d["codes"], d["scale"], weight=d["weight"])
        return (flow * costs).sum()

    found = torch.autograd.grad(loss(leaves), leaves)
    assert {x.dtype for x in found} == {dtype}
    for got, want in zip(found, oracle(d, flow.double())[1], strict=True):
        torch.testing.assert_close(
            got.double(), want, rtol=1e-3 if dtype.itemsize == 2 else 1e-9, atol=1e-7
        )
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    again = torch.autograd.grad(compiled(leaves), leaves)
    assert all(map(torch.equal, found, again))
    some = torch.autograd.grad(loss([leaves[0].detach(), *leaves[1:]]), leaves[1])
    assert torch.equal(some[0], found[1])


def test_opcheck():
    d = make_inputs(3, 8, LAYERS, dtype=torch.float64)
    weight, teacher = d["weight"].double(), (d["codes"], d["scale"])
    leaves = [x.requires_grad_() for x in d["student"]]
    torch.library.opcheck(torch.ops.kdcache.layer_costs.default, (weight, leaves, *teacher))
    constants = [x.detach() for x in leaves]
    given = (weight, constants, *teacher, torch.rand(LAYERS).double())
    torch.library.opcheck(torch.ops.kdcache.layer_costs_gradient.default, given)


def test_it_has_no_double_backward():
    x = torch.randn(2, 3, requires_grad=True)
    cost = layer_costs([x], [torch.zeros(2, 3)]).sum()
    (gradient,) = torch.autograd.grad(cost, x, create_graph=True)
    with pytest.raises(RuntimeError, match="layer_costs has no double backward"):
        gradient.sum().backward()


X = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([], [X]), ValueError, "0 of the student and 1 of the teacher"),
        (([X], [X, X[:, :3]]), ValueError, r"codes\[1\] must have shape \(2, 4\)"),
        (
            ([X, X.half()], [X]),
            TypeError,
            r"student\[1\] must be one of float32; got",
        ),
        (([X], [X.char()]), ValueError, "1 layers of torch.int8 and 0 scales"),
        (([X], [X], [X[:, 0]]), ValueError, "1 layers of torch.float32 and 1 scales"),
        (([X], [X.char()], [X[:1, 0]]), ValueError, r"scale\[0\] must be \[N\] or \[N, G\]"),
        (([X], [X.double()]), TypeError, r"codes\[0\] must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        layer_costs(*arguments)
