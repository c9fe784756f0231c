"""relation_kl: documents of unlike lengths against float64 torch, in pieces of every size."""

import math

import pytest
import torch

from kdcache.bench.timing import Stopwatch
from kdcache_kernels import relation_kl
from kdcache_kernels.relation_kl import reference
from kdcache_kernels.relation_kl.pieces import pieces_of
from kdcache_kernels.relation_kl.reference import make_inputs

LENGTHS = [7, 7, 3, 1, 12, 5, 5, 5]
HEADS = 6
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
NAMES = ("student", "student_keys")


def run(x, *, keys, **options):
    """The loss and the gradients of `student`, and of `student_keys` where there are keys."""
    names = NAMES if keys else NAMES[:1]
    leaves = {name: x[name].detach().requires_grad_() for name in names}
    more = {"teacher_keys": x["teacher_keys"]} | leaves if keys else leaves
    loss = relation_kl(
        teacher=x["teacher"],
        lengths=x["lengths"],
        weight=x["weight"],
        heads=HEADS,
        **more,
        **options,
    )
    return loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))


def oracle(x, *, keys):
    """The same in float64, a document at a time."""
    names = NAMES if keys else NAMES[:1]
    leaves = {name: x[name].detach().double().requires_grad_() for name in names}
    loss = reference.relation_kl(
        leaves["student"],
        x["teacher"],
        leaves.get("student_keys"),
        x["teacher_keys"] if keys else None,
        x["lengths"].tolist(),
        HEADS,
        x["weight"],
    )
    return loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))


def assert_near(found, wanted, tolerance):
    for got, want in zip(found, wanted, strict=True):
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chunk_bytes", [None, 1, 2000])
def test_value_and_gradients_match_float64_in_pieces_of_any_size(dtype, keys, chunk_bytes):
    x = make_inputs(LENGTHS, 24, 36, dtype=dtype)
    if dtype == torch.float64:
        x = {name: v.double() if v.is_floating_point() else v for name, v in x.items()}
    found = run(x, keys=keys, chunk_bytes=chunk_bytes)
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    assert_near(found, oracle(x, keys=keys), TOLERANCE[dtype])


@pytest.mark.parametrize("keys", [False, True])
def test_a_document_of_weight_zero_may_hold_anything_and_gets_exact_zeros(keys):
    x = make_inputs(LENGTHS, 24, 36)
    x["weight"][1] = 0
    wanted = oracle(x, keys=keys)
    for name in ("student", "teacher", "student_keys", "teacher_keys"):
        x[name][7:14] = math.nan
    found = run(x, keys=keys)
    assert_near(found, wanted, 2e-6)
    for gradient in found[1:]:
        assert not gradient[7:14].any()


def test_no_document_is_worth_nothing():
    student = torch.zeros(0, 24, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = relation_kl(student, torch.zeros(0, 36), none, heads=HEADS)
    loss.backward()
    assert loss == 0
    assert student.grad.shape == (0, 24)


def test_autocast_does_not_round_the_relations():
    x = make_inputs(LENGTHS, 24, 36)
    whole = run(x, keys=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(x, keys=True)
    for got, want in zip(found, whole, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("most", [1, 40, 100, 10**6])
def test_pieces_are_all_relations_once_and_no_more_than_fit(most):
    seen, tokens = torch.zeros(len(LENGTHS), HEADS), torch.tensor(LENGTHS).cumsum(0)
    for piece in pieces_of(LENGTHS, HEADS, most):
        block = seen[piece.documents, piece.heads]
        block += 1
        assert block.numel() * piece.length**2 <= most or block.numel() == 1
        assert set(LENGTHS[piece.documents]) == {piece.length}
        last = piece.documents.stop - 1
        assert piece.tokens == slice(
            int(tokens[piece.documents.start]) - piece.length, int(tokens[last])
        )
    assert bool((seen == 1).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads must divide the columns of student, 24; got 5"),
        ({"heads": 8}, "heads must divide the columns of teacher, 36; got 8"),
        ({"heads": 0}, "heads must divide"),
        ({"teacher": torch.zeros(44, 36)}, r"teacher must have shape \(45, 36\)"),
        ({"teacher_keys": None}, "give both, or neither"),
        ({"lengths": torch.tensor([44]), "weight": None}, "N = 45 together; got 44 of 1"),
        ({"lengths": torch.tensor([45, 0]), "weight": None}, "lengths must be 1 or more"),
        ({"lengths": torch.tensor([45.0]), "weight": None}, "int64"),
        ({"weight": torch.ones(3)}, r"weight must have shape \(8,\)"),
        ({"chunk_bytes": 0}, "chunk_bytes must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    given = {**make_inputs(LENGTHS, 24, 36), "heads": HEADS, **change}
    with pytest.raises(ValueError, match=message):
        relation_kl(**given)


def test_no_scores_of_a_whole_batch_are_in_memory():
    """What is held beyond inputs, loss and gradients, of scores of both sides in 48 heads."""
    length, batch, heads, width = 128, 16, 48, 384
    lengths = torch.full((batch,), length)
    x, t = torch.randn(2, batch * length, width)
    x.requires_grad_()
    relation_kl(x[:length], t[:length], lengths[:1], heads=heads).backward()  # compiled
    held = Stopwatch(x.device).peak_bytes(lambda: relation_kl(x, t, lengths, heads=heads))
    scores = 2 * batch * heads * length**2 * 4
    gradient = x.numel() * 4
    assert held is not None
    assert held - gradient < 0.1 * scores
