"""The rows of both losses, on every backend: zero where that is promised, whatever is near.

Memory from `torch.empty` is filled with NaN, so a row that was not written shows.
"""

import inspect
import math
import pickle

import pytest
import torch

import kdcache_kernels
from kdcache_kernels.linear_kl import _numba as numba_dense
from kdcache_kernels.linear_kl import _triton as triton_dense
from kdcache_kernels.linear_kl import reference as reference_dense
from kdcache_kernels.linear_kl.spec import Spec as DenseSpec
from kdcache_kernels.topk_kl import _numba, _triton, reference
from kdcache_kernels.topk_kl.reference import make_inputs
from kdcache_kernels.topk_kl.spec import DIVERGENCES, Spec, Teacher

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
V, K = 300, 6
LIVE, IGNORED, MASKED, INFINITE, PADS, SPOILT = range(6)
"""Of the rows below: labelled; not labelled; of weight 0 and full of NaN; and three that are not
labelled: of infinite divergence, of a teacher without a class, of a NaN among the logits."""

# The interpreter computes with NumPy, which warns of the infinities and NaN that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def nan_in_fresh_memory():
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def launched(how):
    def run(logits, teacher, weight, labels, spec, out, check):
        return _triton.launch(logits, teacher, weight, labels, spec, out, how)

    return run


SPARSE = {
    "reference": reference.topk_kl,
    "numba": _numba.topk_kl,
    "triton": launched(_triton.Plan(_triton.Shape(512, 4, 128), 1, 0)),
    "triton in pieces": launched(_triton.Plan(_triton.Shape(128, 4, 128), 2, 1)),
}
DENSE = {
    "reference": reference_dense.dense_kl,
    "numba": numba_dense.dense_kl,
    "triton": triton_dense.dense_kl,
}


def inputs(divergence):
    d = make_inputs(6, V, K, temperature=1.0)
    d["labels"][IGNORED:] = -100
    d["logits"][MASKED], d["logprobs"][MASKED], d["ids"][MASKED] = math.nan, math.nan, V + 7
    d["tail_logmass"][MASKED], d["weight"][MASKED], d["labels"][MASKED] = math.nan, 0.0, V + 7
    if divergence == "reverse":
        d["logprobs"][INFINITE, 2] = -math.inf
    else:
        d["logits"][INFINITE, d["ids"][INFINITE, 2]] = -math.inf
    d["ids"][PADS], d["logprobs"][PADS], d["tail_logmass"][PADS] = -1, -math.inf, 0.0
    d["logits"][SPOILT, 5] = math.nan
    return {name: x.to(DEVICE) for name, x in d.items()}


def check(soft, hard, labels, divergence):
    soft, hard = soft.cpu(), hard.cpu()
    assert hard[IGNORED:].tolist() == [0.0] * 5
    assert (hard[LIVE] == 0) == (labels is None)
    assert soft[MASKED] == 0
    assert soft[[LIVE, IGNORED, PADS]].isfinite().all()
    assert soft[SPOILT].isnan()
    assert soft[INFINITE].isfinite() if divergence == "js" else soft[INFINITE] == math.inf


divergences = pytest.mark.parametrize("divergence", DIVERGENCES)
weights = pytest.mark.parametrize(("soft_weight", "hard_weight"), [(1.0, 0.5), (0.0, 0.0)])
labelled = pytest.mark.parametrize(
    "with_labels", [pytest.param(False, marks=pytest.mark.slow), True], ids=["none", "labels"]
)


@divergences
@weights
@labelled
@pytest.mark.parametrize("backend", SPARSE)
def test_rows_of_topk_kl(backend, divergence, soft_weight, hard_weight, with_labels):
    d = inputs(divergence)
    labels = d["labels"] if with_labels else None
    spec = Spec(1.0, "bucket", divergence, soft_weight, hard_weight, -100)
    teacher = Teacher(d["ids"], d["logprobs"], d["tail_logmass"])
    out = torch.full_like(d["logits"], math.nan)
    _, soft, hard = SPARSE[backend](d["logits"], teacher, d["weight"], labels, spec, out, False)
    check(soft, hard, labels, divergence)
    assert out[MASKED].count_nonzero() == 0
    assert out[[LIVE, IGNORED, PADS]].isfinite().all()


@divergences
@weights
@labelled
@pytest.mark.parametrize("backend", DENSE)
def test_rows_of_linear_kl(backend, divergence, soft_weight, hard_weight, with_labels, monkeypatch):
    monkeypatch.setattr(triton_dense, "BLOCK", 128)
    d = inputs(divergence)
    labels = d["labels"] if with_labels else None
    teacher = torch.randn(6, V, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    teacher[MASKED] = math.nan
    if divergence == "reverse":
        teacher[INFINITE, 3] = -math.inf
    spec = DenseSpec(1.0, divergence, soft_weight, hard_weight, -100)
    gradient = d["logits"].clone()
    _, soft, hard = DENSE[backend](gradient, teacher, None, d["weight"], labels, spec, True)
    check(soft, hard, labels, divergence)
    assert gradient[MASKED].count_nonzero() == 0
    assert gradient[[LIVE, IGNORED, PADS]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", ["topk_kl", "linear_topk_kl", "linear_kl"])
@pytest.mark.parametrize("need_grad", [False, True], ids=["value", "gradient"])
def test_rows_of_the_public_ops(op, dtype, need_grad):
    d = inputs("forward")
    d["ids"][MASKED], d["labels"][MASKED] = 0, -100  # refused by name otherwise
    logits = d["logits"].to(dtype).nan_to_num(neginf=-1e4).requires_grad_(need_grad)
    head = torch.eye(V, dtype=dtype, device=DEVICE)
    sparse = d["ids"], d["logprobs"]
    options = {"labels": d["labels"], "hard_weight": 0.5}
    if op == "topk_kl":
        given = (logits, *sparse)
        options |= {"weight": d["weight"], "tail": "renormalize", "check_ids": False}
    elif op == "linear_topk_kl":
        given = (logits, head, None, *sparse)
        options |= {"row_weight": d["weight"], "tail": "renormalize", "check_ids": False}
    else:
        given = (logits, head, logits.detach() + 1, head)
        options |= {"row_weight": d["weight"], "check_labels": False}
    alone, rows = getattr(kdcache_kernels, op), getattr(kdcache_kernels, f"{op}_rows")
    loss, soft, hard = rows(*given, **options)
    assert not soft.requires_grad
    assert not hard.requires_grad
    assert loss.requires_grad == need_grad
    assert torch.equal(alone(*given, **options), loss)
    again = alone(*given, **options, return_rows=True)
    assert all(map(torch.equal, again, (loss, soft, hard)))
    assert hard[IGNORED:].tolist() == [0.0] * 5
    assert hard[LIVE] > 0
    assert soft[MASKED] == 0
    assert soft.isfinite().all()
    torch.testing.assert_close(loss.detach(), (d["weight"] * (soft + 0.5 * hard)).sum().to(dtype))


@pytest.mark.parametrize("name", ["topk_kl", "linear_topk_kl", "linear_kl"])
def test_a_loss_takes_what_its_rows_take(name):
    loss, rows = (getattr(kdcache_kernels, each) for each in (name, f"{name}_rows"))
    shown, given = (inspect.signature(each).parameters for each in (loss, rows))
    assert [*shown] == [*given, "return_rows"]
    assert [shown[each] for each in given] == [*given.values()]
    assert rows.__doc__ in loss.__doc__
    assert pickle.loads(pickle.dumps(loss)) is loss
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        loss(temprature=2.0)
