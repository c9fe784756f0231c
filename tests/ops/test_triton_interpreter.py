"""topk_kl in Triton against float64, value and gradient apart: interpreted, or on a GPU if any."""

import math

import pytest
import torch

from kdcache_kernels._checks import gradient_dtype
from kdcache_kernels.topk_kl import _triton as triton_kl
from kdcache_kernels.topk_kl import reference
from kdcache_kernels.topk_kl._shapes import CANDIDATES, SHAPES, autotuned, fastest, light, listed
from kdcache_kernels.topk_kl.reference import make_inputs
from kdcache_kernels.topk_kl.spec import DIVERGENCES, Spec, Teacher

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The interpreter computes with NumPy, which warns of the infinities and NaN that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

Plan, Shape = triton_kl.Plan, triton_kl.Shape
PLANS = {  # of rows of 1271 logits
    "whole": Plan(Shape(2048, 4, 128), 1, 0),
    "loop": Plan(Shape(256, 4, 128), 4, 1),
    "two last": Plan(Shape(128, 4, 128), 8, 2),  # tiles that may reach beyond the row
}
TAILS = ("bucket", "renormalize", "truncate")
# The interpreter truncates float32 to bfloat16 where a GPU rounds.
BF16_STEP = 2.0**-8 if DEVICE == "cuda" else 2.0**-7
every_plan = pytest.mark.parametrize("how", PLANS)
plans = pytest.mark.parametrize("how", ["whole", "loop"])
SHORT = {"whole": Plan(Shape(64, 1, 128), 1, 0), "loop": Plan(Shape(32, 1, 128), 1, 1)}


def teacher_of(d, temperature, tail):
    rest = d["tail_logmass"] if temperature == 1 else d["tail_stat"]
    needs_rest = tail == "bucket" or (tail == "truncate" and temperature != 1)
    return Teacher(d["ids"], d["logprobs"], rest if needs_rest else None)


def oracle(d, spec, *, labels=True):
    """Loss, rows and gradient of the float64 reference."""
    x = d["logits"].double()
    out = torch.empty(x.shape, dtype=torch.float64)
    teacher = teacher_of(d, spec.temperature, spec.tail)
    y = d["labels"] if labels else None
    loss, soft, hard = reference.topk_kl(x, teacher, d["weight"].double(), y, spec, out, False)
    return loss, soft, hard, out


def run(d, spec, how=None, *, labels=True, out=None):
    """The same of the kernel; the gradient starts as NaN."""
    x = on_device(d["logits"])
    if out is None:
        out = torch.full(x.shape, math.nan, dtype=gradient_dtype(x), device=DEVICE)
    teacher = Teacher(*(None if t is None else t.to(DEVICE) for t in teacher_of(d, *spec[:2])))
    arguments = (x, teacher, d["weight"].to(DEVICE), d["labels"].to(DEVICE) if labels else None)
    if how is None:
        results = triton_kl.topk_kl(*arguments, spec, out, False)
    else:
        results = triton_kl.launch(*arguments, spec, out, how)
    return *(r.cpu() for r in results), out.cpu()


def on_device(x):
    """Move, keeping strides and offset."""
    if x.device.type == DEVICE:
        return x
    storage = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype)
    storage.set_(x.untyped_storage())
    return storage.to(DEVICE).as_strided(x.shape, x.stride(), x.storage_offset())


def assert_near(got, want, tol=2e-6):
    want = want.double()
    infinite = want.isinf()
    assert torch.equal(got.double()[infinite], want[infinite])
    assert torch.equal(got.isnan(), want.isnan())
    error = (got.double() - want)[want.isfinite()].abs()
    assert error.numel() == 0 or error.max() <= tol * (1 + want[want.isfinite()].abs().max())


def assert_rounded(got, want):
    """Every element of a gradient, in the precision of its dtype."""
    if got.dtype == torch.float32:
        assert_near(got, want)
    else:
        assert ((got.double() - want).abs() <= BF16_STEP * want.abs() + 2e-7).all()


def check(d, spec, how=None, *, labels=True):
    loss, soft, hard, gradient = run(d, spec, how, labels=labels)
    want_loss, want_soft, want_hard, want = oracle(d, spec, labels=labels)
    scale = 1 + spec.temperature**2 / 4  # T^2 multiplies what rounding left
    assert_near(loss, want_loss, 2e-6 * scale)
    assert_near(soft, want_soft, 2e-6 * scale)
    assert_near(hard, want_hard)
    assert_rounded(gradient, want)


@every_plan
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_value_and_gradient_match_float64(how, tail, temperature):
    d = make_inputs(3, 1271, 13, temperature=temperature, pads=2)
    d["labels"] = torch.stack([d["ids"][0, 3], d["labels"][1], torch.tensor(-100)])
    check(d, Spec(temperature, tail, "forward", 0.7, 0.3, -100), PLANS[how])


@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_any_temperature_with_labels(temperature):
    d = make_inputs(2, 600, 13, temperature=temperature)
    check(d, Spec(temperature, "bucket", "forward", 0.7, 0.3, -100))


@plans
@pytest.mark.parametrize("divergence", ["reverse", "js"])
def test_other_divergences_match_float64(how, divergence):
    d = make_inputs(3, 1271, 13, temperature=2.0)
    check(d, Spec(2.0, "bucket", divergence, 1.0, 0.0, -100), PLANS[how], labels=False)


@plans
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_tail_that_holds_nearly_all_keeps_the_digits_of_a_small_divergence(how, divergence):
    """Three ids at T = 4 have 3 % of both sides: the tail's term is a difference of two near 0."""
    d = make_inputs(24, 1271, 3, temperature=4.0, seed=38)
    spec = Spec(4.0, "bucket", divergence, 1.0, 0.0, -100)
    got, want = run(d, spec, PLANS[how], labels=False)[1], oracle(d, spec, labels=False)[1]
    assert ((got.double() - want).abs() <= 16 * 3e-8 + 1e-5 * want).all()


@pytest.mark.parametrize(
    ("n", "v", "k"),
    [(1, 1, 1), (3, 7, 1), (4, 7, 7), (2, 64, 64), (2, 31, 5), (2, 30522, 64), (1, 40000, 100)],
)
def test_sizes_as_planned(n, v, k):
    d = make_inputs(n, v, k)
    check(d, Spec(1.0, "bucket", "forward", 1.0, 0.5, -100))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sixteen_bit_logits(dtype, temperature):
    d = make_inputs(3, 1271, 13, dtype=dtype, temperature=temperature)
    check(d, Spec(temperature, "bucket", "forward", 1.0, 0.5, -100))


@pytest.mark.parametrize("gap", [1e-2, 1e-3])
def test_a_nearly_converged_bf16_student_keeps_its_small_gradient(gap):
    """q = 0.99 of one class, which the teacher gives a little less: q - p must not be rounded."""
    logits = torch.full((2, 512), -7.0, dtype=torch.bfloat16)
    logits[:, 5] = 4.0
    p = torch.softmax(logits.double(), 1)[:, 5:6] * (1 - gap)
    d = make_inputs(2, 512, 1)
    d |= {"logits": logits, "ids": torch.full((2, 1), 5), "logprobs": p.log().float()}
    d["tail_logmass"] = torch.log1p(-p)[:, 0].float()
    spec = Spec(1.0, "bucket", "forward", 1.0, 0.0, -100)
    got, want = run(d, spec, labels=False)[3][:, 5], oracle(d, spec, labels=False)[3][:, 5]
    assert ((got.double() - want).abs() <= (BF16_STEP + 1e-3) * want.abs()).all()


@plans
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bucket_vanishes_at_the_fixed_point(how, temperature):
    d = make_inputs(3, 1271, 16)
    logp = torch.log_softmax(d["logits"].double(), 1)
    d["logprobs"], d["ids"] = logp.topk(16, 1)
    rest = logp.scatter(1, d["ids"], -math.inf)
    d["tail_logmass"] = rest.logsumexp(1).float()
    d["tail_stat"] = (rest / temperature).logsumexp(1).float()
    spec = Spec(temperature, "bucket", "forward", 1.0, 0.0, -100)
    loss, _, _, gradient = run(d, spec, PLANS[how], labels=False)
    assert loss.abs() < 1e-5
    assert gradient.abs().max() < 1e-6


@plans
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint16], ids=str)
def test_every_integer_dtype_with_pads_and_without_order(how, dtype):
    d = make_inputs(3, 1271, 9, pads=2)
    order = torch.tensor([4, 8, 0, 7, 2, 1, 6, 3, 5])
    d["ids"], d["logprobs"] = d["ids"][:, order], d["logprobs"][:, order]
    want = oracle(d, Spec(1.0, "bucket", "forward", 1.0, 0.5, -100))
    narrow = d["ids"].to(torch.int16)
    d["ids"] = narrow.view(dtype) if dtype.itemsize == 2 else d["ids"].to(dtype)
    got = run(d, Spec(1.0, "bucket", "forward", 1.0, 0.5, -100), PLANS[how])
    assert_near(got[0], want[0])
    assert_near(got[3], want[3])


def test_the_last_uint16_id_is_a_class_in_a_vocabulary_of_65536():
    d = make_inputs(1, 65536, 3)
    d["ids"] = torch.tensor([[65535, 0, 7]]).to(torch.uint16)
    check(d, Spec(1.0, "renormalize", "forward", 1.0, 0.0, -100), labels=False)


def laid_out(x, layout):
    n, v = x.shape
    wide = torch.full((2 * n, v + 8), math.nan, dtype=x.dtype)
    if layout == "sliced":
        return wide[:, :v].index_copy_(0, torch.arange(0, 2 * n, 2), x)[::2]
    if layout == "offset":
        return torch.cat([x.new_zeros(3), x.flatten()])[3:].view(n, v)
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "expanded":
        return x[:1].expand(n, v)
    return wide[:n, 1 : v + 1].copy_(x)


@pytest.mark.slow
@plans
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["sliced", "offset", "transposed", "expanded", "inside"])
def test_any_layout_of_the_logits(how, dtype, layout):
    d = make_inputs(8, 31, 5, dtype=dtype)  # eight rows meet every distance from a boundary
    d["logits"] = laid_out(d["logits"], layout)
    spec = Spec(1.0, "bucket", "forward", 1.0, 0.5, -100)
    if layout == "transposed":
        check(d, spec)  # made contiguous before it is planned
    else:
        check(d, spec, SHORT[how])


@plans
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("v", [5, 31])
def test_a_gradient_over_the_logits_leaves_the_neighbours_alone(how, dtype, v):
    how = SHORT[how]
    d = make_inputs(8, v, 5, dtype=dtype)
    d["weight"][4] = 0
    spec = Spec(1.0, "bucket", "forward", 1.0, 0.5, -100)
    wide = torch.full((8, 3 + v + 3), 7.0, dtype=dtype, device=DEVICE)
    inner = wide[:, 3 : 3 + v]
    inner.copy_(d["logits"])
    run({**d, "logits": inner}, spec, how, out=inner)
    assert_rounded(inner.cpu(), oracle(d, spec)[3])
    assert (wide[:, :3] == 7).all()
    assert (wide[:, 3 + v :] == 7).all()


@every_plan
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masked_rows_are_not_read_and_get_exact_zeros(how, dtype):
    d = make_inputs(4, 1271, 9, dtype=dtype, temperature=2.0)
    for i in (1, 3):
        d["weight"][i] = 0
        d["logits"][i] = d["logprobs"][i] = math.nan
        d["tail_logmass"][i] = d["tail_stat"][i] = math.nan
    spec = Spec(2.0, "bucket", "forward", 0.7, 0.3, -100)
    check(d, spec, PLANS[how])
    _, soft, hard, gradient = run(d, spec, PLANS[how])
    assert not gradient[[1, 3]].any()
    assert soft[[1, 3]].tolist() == hard[[1, 3]].tolist() == [0, 0]


def test_all_rows_masked_give_zero():
    d = make_inputs(3, 31, 2)
    d["weight"].zero_()
    d["logits"].fill_(math.nan)
    loss, soft, _, gradient = run(d, Spec(1.0, "bucket", "forward", 1.0, 0.5, -100))
    assert loss == 0
    assert not soft.any()
    assert not gradient.any()


@plans
def test_infinite_and_huge_logits(how):
    d = make_inputs(5, 1271, 8)
    d["logits"][0, ::3] = 1e4
    d["logits"][1] -= 1e4
    outside = torch.ones(1271, dtype=torch.bool).index_fill(0, d["ids"][2], False)
    d["logits"][2, outside] = -math.inf  # nothing in the rest
    d["logits"][3, d["ids"][3, 2]] = -math.inf  # a banned class that the teacher wants
    d["logits"][4] = -math.inf
    d["tail_logmass"][2] = -math.inf
    d["labels"] = torch.full((5,), int(d["ids"][2, 0]))
    check(d, Spec(1.0, "bucket", "forward", 1.0, 0.0, -100), PLANS[how])
    d["logits"][4] = 0
    loss, soft, _, gradient = run(d, Spec(1.0, "bucket", "forward", 1.0, 0.0, -100), PLANS[how])
    assert loss == math.inf
    assert soft.isinf().tolist() == [False, False, False, True, False]
    assert gradient.isfinite().all()


@plans
def test_a_confident_student_keeps_its_rest(how):
    """The rest is 200 nats down: 1 - sum(q) is zero, and exp underflows."""
    d = make_inputs(2, 1271, 4)
    d["logits"] = d["logits"].scatter(1, d["ids"], d["logits"].gather(1, d["ids"]) + 200)
    check(d, Spec(1.0, "bucket", "forward", 1.0, 0.5, -100), PLANS[how])


@plans
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_and_infinity_in_a_live_row_are_not_hidden(how, poison):
    d = make_inputs(3, 1271, 5)
    d["logits"][1, 700] = poison
    loss, soft, _, gradient = run(d, Spec(1.0, "bucket", "forward", 1.0, 0.0, -100), PLANS[how])
    assert loss.isnan()
    assert soft.isnan().tolist() == [False, True, False]
    assert gradient[1].isnan().any()
    assert gradient[[0, 2]].isfinite().all()


@plans
def test_bad_ids_and_labels_make_nan_rows(how):
    d = make_inputs(4, 40, 5)
    d["ids"][1, 2], d["ids"][3, 0] = 40, -2
    d["labels"][2] = 40
    how = SHORT[how]
    _, soft, hard, gradient = run(d, Spec(1.0, "bucket", "forward", 1.0, 1.0, -100), how)
    assert soft.isnan().tolist() == [False, True, False, True]
    assert hard.isnan().tolist() == [False, False, True, False]
    assert gradient.isnan().any(1).tolist() == [False, True, True, True]


def test_a_zero_coefficient_silences_an_infinite_loss():
    d = make_inputs(2, 40, 5)
    d["logits"][:, d["ids"][0, 0]] = -math.inf
    d["labels"] = torch.full((2,), int(d["logits"][0].argmax()))
    loss, soft, _, gradient = run(d, Spec(1.0, "renormalize", "forward", 0.0, 1.0, -100))
    assert soft[0] == math.inf
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_without_a_gradient_nothing_is_written():
    d = make_inputs(2, 40, 5)
    x = d["logits"].to(DEVICE)
    before = x.clone()
    teacher = Teacher(*(t.to(DEVICE) for t in teacher_of(d, 1.0, "bucket")))
    spec = Spec(1.0, "bucket", "forward", 1.0, 0.0, -100)
    loss = triton_kl.topk_kl(x, teacher, d["weight"].to(DEVICE), None, spec, None, False)[0]
    assert_near(loss.cpu(), oracle(d, spec, labels=False)[0])
    assert torch.equal(x, before)


def test_no_rows_give_zero():
    d = make_inputs(1, 40, 5)
    d = {name: x[:0] for name, x in d.items()}
    assert run(d, Spec(1.0, "bucket", "forward", 1.0, 0.0, -100), labels=False)[0] == 0


def test_a_support_too_long_for_a_program_runs_in_torch():
    d = make_inputs(1, 4200, 4100)
    check(d, Spec(1.0, "bucket", "forward", 1.0, 0.0, -100), labels=False)


def test_wrong_ids_raise_when_checked():
    d = make_inputs(2, 40, 5)
    d["ids"][1, 0] = 40
    d = {name: x.to(DEVICE) for name, x in d.items()}
    spec = Spec(1.0, "bucket", "forward", 1.0, 0.0, -100)
    teacher = teacher_of(d, 1.0, "bucket")
    with pytest.raises(ValueError, match=r"row 1 .*vocabulary"):
        triton_kl.topk_kl(d["logits"], teacher, d["weight"], None, spec, None, True)


@pytest.mark.parametrize(
    ("v", "slack", "want"),
    [
        (30522, 6, Plan(Shape(4096, 8, 128), 7, 1)),
        (1000, 0, Plan(Shape(1024, 2, 128), 1, 0)),
        (40960, 0, Plan(Shape(4096, 8, 128), 10, 0)),
        (40959, 7, Plan(Shape(4096, 8, 128), 9, 2)),  # a row may end in either of two tiles
        (7, 7, Plan(Shape(64, 1, 128), 1, 0)),
    ],
)
def test_only_tiles_inside_of_every_row_go_without_a_mask(v, slack, want):
    assert triton_kl.plan(v, slack, Shape(4096, 8, 128)) == want


@pytest.mark.skipif(DEVICE == "cpu", reason="needs 9 GB of a GPU's memory")
def test_more_elements_than_an_int32_counts():
    n, v = 16745, 128256
    d = make_inputs(4, v, 8, dtype=torch.bfloat16)
    x = torch.zeros(n, v, dtype=torch.bfloat16, device=DEVICE)
    x[-4:] = d["logits"].to(DEVICE)
    weight = torch.zeros(n, device=DEVICE)
    weight[-4:] = d["weight"].to(DEVICE)
    teacher = Teacher(
        *(
            torch.cat([t[:1].expand(n - 4, *t.shape[1:]), t]).to(DEVICE)
            for t in teacher_of(d, 1.0, "bucket")
        )
    )
    spec = Spec(1.0, "bucket", "forward", 1.0, 0.0, -100)
    triton_kl.topk_kl(x, teacher, weight, None, spec, x, False)
    assert not x[:-4].any()
    assert_rounded(x[-4:].cpu(), oracle(d, spec, labels=False)[3])


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has nothing to wait for")
def test_nothing_waits_for_the_device():
    d = {name: x.to(DEVICE) for name, x in make_inputs(4, 1271, 8).items()}
    spec, out = Spec(1.0, "bucket", "forward", 1.0, 0.5, -100), torch.empty_like(d["logits"])
    arguments = (d["logits"], teacher_of(d, 1.0, "bucket"), d["weight"], d["labels"], spec, out)
    triton_kl.topk_kl(*arguments, False)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        triton_kl.topk_kl(*arguments, False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


SHAPES_OF_ALL = {shape for table in SHAPES.values() for shape in table.values()} | {*CANDIDATES}


@pytest.mark.parametrize("shape", sorted(SHAPES_OF_ALL), ids=str)
def test_every_shape_of_the_table_and_of_the_trial_gives_the_same(shape):
    d = make_inputs(2, 9001, 13, temperature=2.0)
    d["labels"] = torch.stack([d["ids"][0, 3], d["labels"][1]])
    check(d, Spec(2.0, "bucket", "forward", 0.7, 0.3, -100), triton_kl.plan(9001, 3, shape))


def test_rows_are_listed_by_their_length_and_unknown_gpus_take_what_spills_nowhere():
    assert listed(30522, (9, 0)) == Shape(4096, 4, 168)
    assert listed(30522, (9, 0), light(64, 4, labels=True)) == Shape(4096, 8, 128)
    assert listed(30522, (9, 0), light(257, 2, labels=False)) == Shape(4096, 8, 128)
    assert listed(30522, (9, 0), light(256, 2, labels=True)) == Shape(4096, 4, 168)
    assert listed(50257, (9, 0)) == listed(30522, (8, 6)) == Shape(4096, 8, 128)
    assert listed(128256, (9, 0)) == listed(128256, (8, 6)) == Shape(8192, 16, 128)


def test_trying_out_is_asked_for_in_the_environment(monkeypatch):
    monkeypatch.delenv("KDCACHE_AUTOTUNE", raising=False)
    assert not autotuned()
    monkeypatch.setenv("KDCACHE_AUTOTUNE", "1")
    assert autotuned()


def test_shapes_are_tried_once_a_kind_of_rows_and_the_fastest_is_kept():
    first, tried = Shape(64, 1, 8), []

    def seconds(shape):
        tried.append(shape)
        return {CANDIDATES[1]: 0.5}.get(shape, 1.0)

    kind = object()  # of no other test
    assert fastest(kind, first, seconds) == CANDIDATES[1]
    assert set(tried) == {first, *CANDIDATES}
    del tried[:]
    assert fastest(kind, first, seconds) == CANDIDATES[1]
    assert tried == []
    assert fastest(object(), first, lambda shape: 1.0) == first
