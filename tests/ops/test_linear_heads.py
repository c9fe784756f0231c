"""What the fused linear ops share: chunks, gradients of a head, memory, autograd, compilation."""

import math
import sys
import tracemalloc
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache_kernels import linear_kl, linear_topk_kl, topk_kl
from kdcache_kernels._op import flat
from kdcache_kernels.linear_kl import reference as dense_reference
from kdcache_kernels.linear_topk_kl import reference as topk_reference

N, V, H = 7, 331, 18
PARAMETERS = ("hidden", "weight", "bias")


@dataclass
class TopK:
    """linear_topk_kl on drawn inputs."""

    name = "linear_topk_kl"

    def inputs(self, n=N, v=V, h=H, dtype=torch.float32, seed=0) -> dict[str, Tensor]:
        return dict(topk_reference.make_inputs(n, v, h, 9, dtype=dtype, pads=1, seed=seed))

    def __call__(self, d: dict[str, Tensor], **more: Any) -> Any:
        options = {
            "tail_stat": d["tail_stat"],
            "temperature": 2.0,
            "labels": d["labels"],
            "hard_weight": 0.5,
            "row_weight": d["row_weight"],
        }
        return linear_topk_kl(
            d["hidden"],
            d["weight"],
            d.get("bias"),
            d["ids"],
            d["logprobs"],
            **{**options, **more},
        )


@dataclass
class Dense:
    """linear_kl on drawn inputs."""

    name = "linear_kl"

    def inputs(self, n=N, v=V, h=H, dtype=torch.float32, seed=0) -> dict[str, Tensor]:
        return dict(dense_reference.make_inputs(n, v, h, 25, dtype=dtype, seed=seed))

    def __call__(self, d: dict[str, Tensor], **more: Any) -> Any:
        options = {
            "bias": d.get("bias"),
            "teacher_bias": d["teacher_bias"],
            "temperature": 2.0,
            "labels": d["labels"],
            "hard_weight": 0.5,
            "row_weight": d["row_weight"],
        }
        return linear_kl(
            d["hidden"],
            d["weight"],
            d["teacher_hidden"],
            d["teacher_weight"],
            **{**options, **more},
        )


ops = pytest.mark.parametrize("op", [TopK(), Dense()], ids=["linear_topk_kl", "linear_kl"])
ROW_BYTES = 4 * 384  # V, padded to whole lines, in float32


def gradients(op, d, *, names=PARAMETERS, factor=1.0, **more):
    """Loss and gradients of the named inputs, leaves of their own."""
    leaves = {name: d[name].detach().clone().requires_grad_() for name in names}
    loss = op({**d, **leaves}, **more)
    (factor * loss).backward()
    return loss.detach(), [leaves[name].grad for name in names]


def assert_near(got, want, tol=2e-6):
    assert (got.double() - want.double()).abs().max() <= tol * (1 + want.double().abs().max())


@ops
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_the_size_of_the_chunks_changes_nothing(op, rows):
    d = op.inputs()
    want = gradients(op, {k: double(v) for k, v in d.items()})
    loss, got = gradients(op, d, chunk_bytes=rows * ROW_BYTES)
    assert_near(loss, want[0], 5e-6)
    for one, other in zip(got, want[1], strict=True):
        assert_near(one, other)


def double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


@ops
def test_a_chunk_smaller_than_a_row_is_a_row(op):
    d = op.inputs(2)
    assert_near(op(d, chunk_bytes=1), op(d))


@ops
def test_chunks_are_evened_out_over_the_rows(op, monkeypatch):
    module = sys.modules["kdcache_kernels._linear"]
    made, original = [], module.chunk_buffer

    def spy(rows, *others):
        made.append(rows)
        return original(rows, *others)

    monkeypatch.setattr(module, "chunk_buffer", spy)
    op(op.inputs(10), chunk_bytes=8 * ROW_BYTES)
    assert set(made) == {5}  # 5 + 5, not 8 + 2


@ops
@pytest.mark.parametrize("names", [PARAMETERS, ("weight",), ("bias",)], ids=str)
def test_classes_of_padding_change_nothing(op, names, monkeypatch):
    d = op.inputs()
    d["hidden"][2] = math.nan  # of no weight
    d["row_weight"][2] = 0
    want = gradients(op, d, names=names, chunk_bytes=3 * ROW_BYTES)
    monkeypatch.setattr(sys.modules["kdcache_kernels._linear"], "PADDED", {"cpu"})
    loss, got = gradients(op, d, names=names, chunk_bytes=3 * ROW_BYTES)
    assert_near(loss, want[0])
    for one, other in zip(got, want[1], strict=True):
        assert one.shape == other.shape
        assert_near(one, other)


@ops
@pytest.mark.parametrize("names", [("hidden",), ("weight",), ("bias",), ("hidden", "bias")])
def test_only_the_gradients_asked_for_are_made(op, names, monkeypatch):
    d = op.inputs()
    made, original = [], torch.mm

    def spy(*args, **more):
        made.append(tuple(more["out"].shape))
        return original(*args, **more)

    monkeypatch.setattr(torch, "mm", spy)
    _, got = gradients(op, d, names=names, chunk_bytes=10**6)
    assert ((V, H) in made) == ("weight" in names)
    assert ((N, H) in made) == ("hidden" in names)
    want = dict(zip(PARAMETERS, gradients(op, d)[1], strict=True))
    for name, gradient in zip(names, got, strict=True):
        assert_near(gradient, want[name])


@ops
def test_without_gradients_none_is_made(op):
    d = op.inputs()
    plain = op(d)
    with torch.no_grad():
        quiet = op({**d, "hidden": d["hidden"].requires_grad_()})
    assert plain == quiet
    assert not quiet.requires_grad


@ops
def test_a_tied_head_collects_both_gradients(op):
    """The weight is also the embedding that made the hidden states."""
    d = op.inputs(n=5, v=H, h=H)
    tokens = torch.tensor([0, 3, 3, 1, 17])
    weight = d["weight"].requires_grad_()
    op({**d, "hidden": weight[tokens], "weight": weight}).backward()
    apart = {**d, "hidden": weight.detach()[tokens]}
    _, (by_hidden, by_weight, _) = gradients(op, apart)
    assert_near(weight.grad, by_weight.index_add(0, tokens, by_hidden))


@ops
def test_no_bias_is_a_bias_of_zero(op):
    d = op.inputs()
    zero = gradients(op, {**d, "bias": torch.zeros(V)})
    none = gradients(op, {k: v for k, v in d.items() if k != "bias"}, names=PARAMETERS[:2])
    assert_near(none[0], zero[0])
    for one, other in zip(none[1], zero[1][:2], strict=True):
        assert_near(one, other)


@ops
@pytest.mark.parametrize("device_drops", [True, False], ids=["dropped", "computed"])
def test_rows_of_weight_zero_are_not_read(op, device_drops, monkeypatch):
    """Elsewhere than on a CPU they are computed, from zeros: finding them would synchronise."""
    if not device_drops:
        module = sys.modules["kdcache_kernels._linear"]
        monkeypatch.setattr(module, "live_rows", lambda row_weight: None)
    d = op.inputs()
    dead = torch.tensor([1, 4, 6])
    d["row_weight"][dead] = 0
    clean = gradients(op, d)
    for name in ("hidden", "teacher_hidden", "logprobs"):
        if name in d:
            d[name][dead] = math.nan
    d["labels"][dead] = -1
    loss, got = gradients(op, d, chunk_bytes=2 * ROW_BYTES)
    assert_near(loss, clean[0])
    for one, other in zip(got, clean[1], strict=True):
        assert_near(one, other)
    assert not got[0][dead].any()
    _, soft, hard = op(d, return_rows=True)
    assert not soft[dead].any()
    assert not hard[dead].any()


@ops
def test_rows_all_of_weight_zero_give_zeros(op):
    d = op.inputs()
    d["row_weight"].zero_()
    d["hidden"].fill_(math.nan)
    loss, got = gradients(op, d)
    assert loss == 0
    for name, gradient in zip(PARAMETERS, got, strict=True):
        assert gradient.shape == d[name].shape
        assert not gradient.any()


@ops
def test_no_rows_give_zeros(op):
    d = op.inputs(3)
    rows = ("hidden", "ids", "logprobs", "tail_stat", "labels", "row_weight", "teacher_hidden")
    d = {name: x[:0] if name in rows else x for name, x in d.items()}
    loss, got = gradients(op, d)
    assert loss == 0
    assert [g.shape for g in got] == [d[name].shape for name in PARAMETERS]
    assert not any(g.any() for g in got)


@ops
def test_two_micro_batches_accumulate_to_one_batch(op):
    d = op.inputs()
    want = gradients(op, d)[1]
    leaves = {name: d[name].clone().requires_grad_() for name in ("weight", "bias")}
    rows = ("hidden", "ids", "logprobs", "tail_stat", "labels", "row_weight", "teacher_hidden")
    for part in (slice(0, 3), slice(3, N)):
        op({name: x[part] if name in rows else x for name, x in {**d, **leaves}.items()}).backward()
    assert_near(leaves["weight"].grad, want[1])
    assert_near(leaves["bias"].grad, want[2])


@ops
def test_rows_add_up_to_the_loss_and_are_detached(op):
    d = op.inputs()
    d["hidden"].requires_grad_()
    loss, soft, hard = op(d, return_rows=True, soft_weight=0.7, chunk_bytes=3 * ROW_BYTES)
    assert not soft.requires_grad
    assert not hard.requires_grad
    assert_near((d["row_weight"] * (0.7 * soft + 0.5 * hard)).sum(), loss.detach())


@ops
def test_rows_count_alike_by_default(op):
    d = op.inputs()
    loss, soft, hard = op(d, row_weight=None, return_rows=True)
    assert_near(loss, (soft + 0.5 * hard).mean())


@ops
def test_the_gradient_of_a_16_bit_weight_is_summed_in_float32(op):
    """Summed row by row in bfloat16, small contributions would be lost."""
    d = op.inputs(200, 40, 8, torch.bfloat16)
    exact = gradients(op, {k: double(v) for k, v in d.items()})[1][1]
    got = gradients(op, d, chunk_bytes=1)[1][1]
    assert got.dtype == torch.bfloat16
    rounded = exact.bfloat16().double()
    assert (got - exact).abs().max() <= 1.1 * (rounded - exact).abs().max()
    row_by_row = torch.zeros_like(got)
    one = ("hidden", "ids", "logprobs", "tail_stat", "labels", "row_weight", "teacher_hidden")
    for i in range(200):
        part = {name: x[i : i + 1] if name in one else x for name, x in d.items()}
        row_by_row += gradients(op, part)[1][1]
    assert (row_by_row - exact).abs().max() > 2 * (got - exact).abs().max()


@ops
def test_float16_gradients_survive_a_loss_scaler(op):
    d = op.inputs(dtype=torch.float16)
    d["row_weight"] = torch.full((N,), 1e-7)  # such gradients are below the smallest float16
    _, got = gradients(op, d, factor=65536.0)
    _, want = gradients(op, {k: double(v) for k, v in d.items()}, factor=65536.0)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float16
        assert (one - other).abs().max() <= 2e-3 * other.abs().max()


@ops
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_chooses_the_dtype_and_gradients_keep_theirs(op, dtype):
    d = op.inputs()
    want = gradients(op, d)
    with torch.autocast("cpu", dtype):
        loss, got = gradients(op, {**d, "hidden": d["hidden"].to(dtype)})
    assert loss.dtype == torch.float32
    assert [g.dtype for g in got] == [dtype, torch.float32, torch.float32]
    assert_near(loss, want[0], 1e-2)
    for one, other in zip(got, want[1], strict=True):
        assert_near(one, other, 1e-2)


@ops
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.11, at a second one
def test_no_matrix_of_all_logits_is_allocated(op):
    n, v, h = 128, 5000, 4
    d = op.inputs(n, v, h)
    chunk_bytes = 8 * v * 4
    gradients(op, d, chunk_bytes=chunk_bytes)  # compiled before it is measured
    chunks = 2 if op.name == "linear_kl" else 1
    bound = 2 * chunks * chunk_bytes + 6 * (v + n) * h * 4
    assert bound < n * v * 4 / 2
    assert allocated(lambda: gradients(op, d, chunk_bytes=chunk_bytes)) < bound
    whole = allocated(
        lambda: topk_kl(
            (d["hidden"] @ d["weight"].t()).requires_grad_(),
            torch.zeros(n, 1, dtype=torch.int64),
            torch.zeros(n, 1),
            tail="renormalize",
        )
    )
    assert whole > n * v * 4  # or what is measured would be nothing


def allocated(step) -> int:
    """Peak bytes of NumPy plus peak bytes of torch while `step` runs."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu):
        torch.empty(1)  # the first profile imports much
    tracemalloc.start()
    try:
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
            step()
        numpy_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return numpy_peak + peak


@ops
@pytest.mark.parametrize("factor", [0.5, 0.0, -3.0])
def test_grad_output_scales_every_gradient(op, factor):
    d = op.inputs()
    once, scaled = gradients(op, d)[1], gradients(op, d, factor=factor)[1]
    for one, other in zip(scaled, once, strict=True):
        assert torch.allclose(one, factor * other, atol=1e-7)


@ops
def test_two_backwards_add_up(op):
    d = op.inputs()
    leaves = {name: d[name].requires_grad_() for name in PARAMETERS}
    loss = op(d)
    loss.backward(retain_graph=True)
    once = {name: x.grad.clone() for name, x in leaves.items()}
    loss.backward()
    for name, x in leaves.items():
        assert torch.equal(x.grad, 2 * once[name])


@ops
def test_double_backward_is_refused(op):
    d = op.inputs()
    leaves = [d[name].requires_grad_() for name in PARAMETERS]
    made = torch.autograd.grad(2 * op(d), leaves, create_graph=True)
    for gradient in made:
        with pytest.raises(RuntimeError, match=f"{op.name} has no double backward"):
            gradient.sum().backward(retain_graph=True)


@ops
def test_gradcheck_in_float64(op):
    d = op.inputs(3, 13, 5, torch.float64)
    d = {k: double(v) for k, v in d.items()}

    def step(hidden, weight, bias):
        moved = {"hidden": hidden, "weight": weight, "bias": bias}
        return op({**d, **moved}, chunk_bytes=2 * 8 * 64)

    assert torch.autograd.gradcheck(step, [d[name].requires_grad_() for name in PARAMETERS])


@ops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("names", [PARAMETERS, ("hidden",), ()], ids=["all", "frozen", "none"])
def test_opcheck(op, dtype, names, monkeypatch):
    """The op itself, with the arguments that the public function gives it."""
    d = op.inputs(3, 19, 6, dtype)
    for name in names:
        d[name].requires_grad_()
    module, seen = sys.modules[f"kdcache_kernels.{op.name}"], []
    original = module._op

    def spy(*args):
        seen.append(args)
        return original(*args)

    monkeypatch.setattr(module, "_op", spy)
    op(d)
    torch.library.opcheck(getattr(torch.ops.kdcache, op.name).default, tuple(flat(seen[0])))


@ops
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(op, backend, autocast):
    torch._dynamo.reset()
    d = op.inputs(4, 50, 6)

    def step(hidden, weight, bias):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return 3 * op({**d, "hidden": 2 * hidden, "weight": weight, "bias": bias})

    leaves = [d[name].clone().requires_grad_() for name in PARAMETERS]
    want = torch.autograd.grad(step(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(step, backend=backend, fullgraph=True)(*leaves), leaves)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@ops
def test_a_gradient_that_was_not_made_is_not_zero_but_an_error(op, monkeypatch):
    d = op.inputs()
    d["weight"].requires_grad_()
    module = sys.modules["kdcache_kernels._head"]
    monkeypatch.setattr(module, "need", lambda *args: (True, False, False))
    with pytest.raises(RuntimeError, match="without this gradient"):
        op(d).backward()


@ops
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(1, N, H)}, ValueError, "hidden must be 2-D.*flatten"),
        ({"weight": torch.zeros(V, H + 1)}, ValueError, rf"weight must be \[V, H\] with H = {H}"),
        ({"bias": torch.zeros(V + 1)}, ValueError, r"bias must have shape \(331,\)"),
        ({"hidden": torch.zeros(N, H).long()}, TypeError, "hidden must be one of float32"),
        ({"weight": torch.zeros(V, H).double()}, TypeError, "one dtype.*torch.autocast"),
        ({"weight": torch.zeros(V, H, device="meta")}, ValueError, "device of hidden"),
        ({"labels": torch.full((N,), V)}, ValueError, "labels must lie .* row 0 holds 331"),
        ({"labels": torch.zeros(N)}, TypeError, "labels must be one of int64"),
        ({"row_weight": torch.ones(N + 1)}, ValueError, "row_weight must have shape"),
        ({"row_weight": torch.ones(N, requires_grad=True)}, ValueError, "detach"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"divergence": "kl"}, ValueError, "forward, reverse, js; got 'kl'"),
        ({"labels": None}, ValueError, "hard_weight=0.5 needs labels"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be positive; got 0"),
    ],
)
def test_wrong_arguments_say_what_to_do(op, change, error, message):
    d = op.inputs()
    tensors = {name: x for name, x in change.items() if name in PARAMETERS}
    options = {name: x for name, x in change.items() if name not in PARAMETERS}
    with pytest.raises(error, match=message):
        op({**d, **tensors}, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@ops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_gives_the_same_without_synchronising(op, dtype):
    d = op.inputs(n=300, v=1271, h=64, dtype=dtype)
    want = gradients(op, {k: double(v) for k, v in d.items()})
    there = {k: v.cuda() for k, v in d.items()}
    gradients(op, there, chunk_bytes=2**17)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, got = gradients(op, there, chunk_bytes=2**17)
        assert_near(gradients(op, there)[0], loss, 1e-3)  # asks what memory is free
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tol = 2e-2 if dtype == torch.bfloat16 else 2e-3
    assert_near(loss.cpu(), want[0], tol)
    for one, other in zip(got, want[1], strict=True):
        assert_near(one.cpu(), other, tol)
