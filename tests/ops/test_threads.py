"""The CPU kernels share torch's threads: they use as many and change nothing about them."""

import os
import subprocess
import sys

import pytest

CODE = """
import numba, torch
import kdcache_kernels as k

x, head = torch.randn(32, 64), torch.randn(50, 64)
best = x.topk(8)
calls = [
    lambda: k.quantize_rows(x),
    lambda: k.topk_kl(x, best.indices, best.values - 9, tail="truncate"),
    lambda: k.linear_kl(x, head, x, head),
    lambda: k.hidden_mse(x, x, normalize="l2"),
    lambda: k.topk_encode(x, 8),
]
for call in calls:
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        call()
        assert torch.get_num_threads() == threads, torch.get_num_threads()
        assert numba.get_num_threads() == threads, numba.get_num_threads()
"""


@pytest.mark.slow
def test_kernels_leave_the_number_of_threads_as_it_was():
    """The first call of a process starts Numba's threads, so this is one of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", CODE], check=True, env=environment, timeout=300)
