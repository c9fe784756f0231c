"""Large gradient buffers on a CPU are used again, and never while anything holds them."""

import pytest
import torch
from torch.testing import assert_close

from kdcache_kernels import _buffer, empty_cache, hidden_mse, topk_kl
from kdcache_kernels.topk_kl import reference

CPU = torch.device("cpu")
SIDE = 1024  # of a float32 square above the least size that is kept


@pytest.fixture(autouse=True)
def _fresh():
    empty_cache()
    yield
    empty_cache()


def buffer(rows=SIDE, dtype=torch.float32):
    return _buffer.empty((rows, SIDE), dtype, CPU)


def test_memory_is_used_again_when_the_tensor_is_gone():
    first = buffer()
    where = first.data_ptr()
    assert where % 64 == 0
    del first
    again = buffer(SIDE // 2, torch.float32)
    assert again.data_ptr() == where
    assert (again.shape, again.dtype) == ((SIDE // 2, SIDE), torch.float32)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (5, 7)])
def test_small_buffers_have_their_shape(shape):
    assert _buffer.empty(shape, torch.float32, CPU).shape == shape
    assert not _buffer._free


@pytest.mark.parametrize(
    "hold", [lambda x: x, lambda x: x[5:], lambda x: x.numpy(), lambda x: x.view(torch.int32)]
)
def test_memory_in_use_is_left_alone(hold):
    held = hold(buffer().fill_(7))
    others = [buffer().fill_(9) for _ in range(3)]
    assert len({other.data_ptr() for other in others}) == 3
    assert (torch.as_tensor(held).view(torch.float32) == 7).all()


def test_little_is_kept(monkeypatch):
    monkeypatch.setattr(_buffer, "MOST", 10 * 2**20)
    for rows in (SIDE, 2 * SIDE, 4 * SIDE):
        buffer(rows)
    assert sum(map(len, _buffer._free)) <= 10 * 2**20
    buffer(8)  # below the least size
    assert len(_buffer._free) <= 2
    empty_cache()
    assert not _buffer._free


def test_what_is_left_in_a_buffer_does_not_reach_a_gradient():
    n, v = 40, 30522
    data = reference.make_inputs(n, v, 16)
    x = data["logits"].float()
    weight = torch.full((n,), 1 / n)
    weight[3] = 0
    given = {"tail_logmass": data["tail_logmass"].float(), "weight": weight}

    def gradient():
        student = x.clone().requires_grad_()
        topk_kl(student, data["ids"], data["logprobs"].float(), **given).backward()
        return student.grad

    clean = gradient().clone()
    (kept,) = _buffer._free
    kept[:] = 255  # all bits set: NaN
    assert_close(gradient(), clean, rtol=0, atol=0)


def test_two_losses_of_one_step_have_gradients_of_their_own():
    x = torch.randn(2048, 768, requires_grad=True)
    y = torch.randn(2048, 768, requires_grad=True)
    losses = [hidden_mse(x, torch.zeros(2048, 768)), hidden_mse(y, torch.zeros(2048, 768))]
    sum(losses).backward()
    for z in (x, y):
        assert_close(z.grad, 2 * z.detach() / z.numel())
