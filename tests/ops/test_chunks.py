"""How many rows of logits the fused linear ops make at once, by what a device has left."""

import pytest
import torch

from kdcache_kernels._device import free_bytes
from kdcache_kernels._linear import chunk_rows, evened, fitting_rows

MB = 2**20


@pytest.mark.parametrize(
    ("columns", "item", "free", "rows"),
    [
        (30528, 2, 80_000 * MB, 4096),
        (30528, 2, 4 * 4096 * 2 * 30528, 4096),  # a quarter, to the byte
        (30528, 2, 4 * 4096 * 2 * 30528 - 1, 2048),
        (30528, 4, 4 * 4096 * 2 * 30528, 2048),
        (128256, 2, 1000 * MB, 512),
        (128256, 2, 100 * MB, 256),  # never fewer
        (128256, 2, 0, 256),
    ],
)
def test_a_chunk_leaves_most_of_the_free_memory_to_others(columns, item, free, rows):
    assert fitting_rows(4096, columns, item, free) == rows
    assert fitting_rows(300, columns, item, 0) == 256
    assert fitting_rows(200, columns, item, 0) == 200


@pytest.mark.parametrize(("free", "rows"), [(None, 3072), (2**33, 3072), (2**28, 1024), (0, 256)])
def test_chunks_of_a_device_fit_what_it_has_left(free, rows):
    """6,000 rows of 30,522 classes: 1,024 at most of them where 256 MiB are free."""
    cuda = torch.device("cuda")
    assert chunk_rows(6000, 30522, torch.bfloat16, cuda, 0, free) == rows
    assert chunk_rows(6000, 30522, torch.bfloat16, cuda, 2**28, free) == 3072  # as was said


@pytest.mark.parametrize(
    ("n", "most", "rows"),
    [
        (8192, 4096, 4096),
        (8192, 3534, 2816),  # not 2,731: three chunks take as many tiles
        (8192, 900, 768),  # at most a multiple that fits
        (7000, 3534, 2560),  # not 3,500, which would be 3,584
        (300, 256, 256),
        (3000, 4096, 3000),
        (150, 100, 75),  # fewer than a tile are what was asked for
        (0, 100, 0),
    ],
)
def test_rows_of_chunks_are_whole_tiles_of_a_product(n, most, rows):
    assert evened(n, most, 256) == rows
    assert rows <= most


def test_a_cpu_has_no_tiles_and_cuts_evenly():
    assert chunk_rows(6000, 30522, torch.float32, torch.device("cpu"), 0) == 546


def test_what_a_cpu_has_free_is_not_asked_for():
    assert free_bytes(torch.zeros(1)) is None
