"""pair_distances: the kernel and the reference against float64 autograd."""

import pytest
import torch
from torch.nn.functional import smooth_l1_loss

from kdcache_kernels import pair_distances
from kdcache_kernels._backends import plain_torch
from kdcache_kernels.pair_distances import _numba, reference

BACKENDS = {"numba": _numba.pair_angles, "reference": reference.pair_angles}
WEIGHTS = (None, [0.5, 0.0, 0.25, 0.25, 0.0, 0.1, 0.2])


def formula(student, teacher, weight):
    """Both losses by products of unit differences, as the paper has them."""
    total = weight.sum()
    share = weight / total
    pairs = share[:, None] * share

    def relations(x):
        apart = x[None] - x[:, None]
        distance = torch.linalg.vector_norm(apart, dim=2)
        mean = (pairs * distance).sum() / (pairs * (distance > 0)).sum()
        unit = apart / torch.where(distance > 0, distance, 1.0)[..., None]
        return distance / mean, unit @ unit.mT

    (near, angles), (known, wanted) = relations(student), relations(teacher)
    triples = share[:, None, None] * pairs
    distance = (pairs * smooth_l1_loss(near, known, reduction="none")).sum()
    return total * distance, total * (
        triples * smooth_l1_loss(angles, wanted, reduction="none")
    ).sum()


def drawn(dtype):
    """Two sides of seven documents, some of which are equal."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, w, generator=g, dtype=torch.float64) for w in (12, 20))
    student[3], student[2], teacher[1] = student[4], student[6], teacher[2]
    student[5] += 30  # further away than others: distances differ by more than their mean
    return student.to(dtype).requires_grad_(), teacher


@pytest.mark.parametrize("weight", WEIGHTS, ids=["even", "weights"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_value_and_gradient_match_float64(dtype, weight):
    student, teacher = drawn(dtype)
    w = torch.full((7,), 1 / 7) if weight is None else torch.tensor(weight)
    truth = student.detach().double().requires_grad_()
    parts = formula(truth, teacher, w.double())
    tol = {torch.float64: 1e-7, torch.float32: 1e-5, torch.float16: 2e-3}[dtype]
    for distance, angle in ((25, 50), (1, 0), (0, 1)):
        given = None if weight is None else w
        loss = pair_distances(student, teacher, distance=distance, angle=angle, weight=given)
        want = distance * parts[0] + angle * parts[1]
        assert loss.item() == pytest.approx(want.item(), rel=max(tol, 1e-5) if weight else tol)
        (got,) = torch.autograd.grad(loss, student)
        (wanted,) = torch.autograd.grad(want, truth, retain_graph=True)
        assert got.dtype == dtype
        assert (got.double() - wanted).abs().max() <= tol * wanted.abs().max()


@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize("backend", BACKENDS)
def test_angles_of_every_backend_match_those_of_float64(backend, chunk, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", chunk)
    squares = [reference.pair_squares(x.detach().double()) for x in drawn(torch.float64)]
    share = torch.rand(7).double()
    share[2] = 0
    share = share / share.sum()
    want = reference.pair_angles(share, *squares, True)
    given = [share.float(), *squares]
    for got, wanted in zip(BACKENDS[backend](*given, True), want, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-6)
    assert not BACKENDS[backend](*given, False)[1].numel()


def test_equal_documents_have_no_relation_and_no_gradient():
    x = torch.ones(4, 3, requires_grad=True)
    loss = pair_distances(x, torch.ones(4, 5))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, x)[0].any()
    nothing = pair_distances(x, torch.randn(4, 5), weight=torch.zeros(4))
    assert nothing.item() == 0


@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "reference"])
def test_documents_that_are_almost_equal_keep_their_angles(plain):
    student, teacher = drawn(torch.float32)
    with torch.no_grad():
        student[0] = student[1] * (1 + 1e-6 * torch.randn(12))
    truth = student.detach().double().requires_grad_()
    want = formula(truth, teacher, torch.full((7,), 1 / 7).double())[1]
    with plain_torch(plain):
        loss = pair_distances(student, teacher, distance=0)
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    (got,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(want, truth)
    assert (got.double() - wanted).norm() <= 1e-5 * wanted.norm()


def test_opcheck():
    student, teacher = drawn(torch.float64)
    given = (student, teacher, torch.full((7,), 1 / 7).double(), 25.0, 50.0, True)
    torch.library.opcheck(torch.ops.kdcache.pair_distances.default, given)


def test_wrong_arguments_are_refused():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"teacher must have shape \(3, 4\); got \(2, 4\)"):
        pair_distances(x, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="must be 2-D"):
        pair_distances(x[0], x)
    with pytest.raises(TypeError, match="teacher must be one of"):
        pair_distances(x, x.int())
