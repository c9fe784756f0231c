"""Kernels as blocks: each once, numbers as they were given, no memory is an error."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from kdcache_kernels._launch import arguments, block_count, kernel, same_blocks
from kdcache_kernels._numba import array_at


class Rows(NamedTuple):
    """Where to write, what, and how many blocks."""

    out: int
    size: int
    factor: float
    offset: int
    blocks: int


@kernel(Rows, sums=True)
def _write(address: int, b: int) -> bool:
    a = arguments(address, Rows)
    out = array_at(a.out, a.size + 1, np.float64)
    if b == a.blocks:
        total = 0.0
        for i in range(a.size):
            total += out[i]
        out[a.size] = total
        return True
    for i in range(b * a.size // a.blocks, (b + 1) * a.size // a.blocks):
        out[i] += a.factor * i + a.offset
    return True


@kernel(Rows)
def _ask_for_too_much(address: int, b: int) -> bool:
    a = arguments(address, Rows)
    rows = np.empty(a.size if b == a.blocks - 1 else 1, np.float64)
    rows[0] = a.factor
    return True


@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("blocks", [1, 2, 5, 1000])
def test_every_block_is_done_once_and_then_the_sum(size, blocks):
    out = torch.zeros(size + 1, dtype=torch.float64)
    _write(Rows(out.data_ptr(), size, -0.5, -(2**50), blocks))
    wanted = torch.tensor([-0.5 * i - 2**50 for i in range(size)], dtype=torch.float64)
    assert torch.equal(out[:-1], wanted)
    assert out[-1].item() == pytest.approx(wanted.sum().item(), rel=1e-15)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Numba prints it
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_block_without_memory_is_an_error(blocks):
    enough = Rows(0, 10, 1.0, 0, blocks)
    _ask_for_too_much(enough)
    with pytest.raises(MemoryError, match="found no memory for the rows it works on"):
        _ask_for_too_much(enough._replace(size=2**58))
    _ask_for_too_much(enough)


@pytest.mark.parametrize("count", [block_count, same_blocks])
def test_there_are_no_more_blocks_than_rows_and_always_one(count):
    assert [count(rows) for rows in (0, 1, 2)] == [1, 1, 2]
    assert count(10**6) == count(10**9) >= 4


def test_numbas_disk_cache_tells_kernels_of_other_arguments_apart():
    """Their bodies have one signature: one that was compiled for others would read past them."""

    class More(NamedTuple):
        out: int
        more: int
        blocks: int

    class Real(NamedTuple):
        out: int
        more: float
        blocks: int

    def made(given):
        def body(address: int, b: int) -> bool:
            return True

        kernel(given)(body)
        return body.__qualname__

    assert made(More) == made(More)
    assert len({made(More), made(Real), made(Rows)}) == 3
