"""Peak memory is this process's own, whoever started it."""

import subprocess
import sys

import numpy as np
import pytest

from kdcache.memory import kept_pages, peak_rss_bytes

PEAK = "from kdcache.memory import peak_rss_bytes; print(peak_rss_bytes())"


def test_a_child_does_not_inherit_the_peak_of_its_parent():
    ballast = np.ones(300 * 2**20, np.uint8)
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 2**20 < int(done.stdout) < len(ballast)


def test_the_peak_stays_when_memory_is_given_back():
    before = peak_rss_bytes()
    ballast = np.ones(before + 2**26, np.uint8)
    size = len(ballast)
    del ballast
    assert peak_rss_bytes() > size


FAULTS = """
import ctypes, resource, sys
import torch
from kdcache.memory import kept_pages

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [faults()]
with kept_pages(sys.argv[1]):
    found += [faults() for _ in range(6)]  # the heap settles in the first
print(found[0], min(found[1:]), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are kept by glibc alone")
@pytest.mark.parametrize(
    ("device", "kept"), [("cpu", True), pytest.param("cuda", False, marks=pytest.mark.slow)]
)
def test_a_cpu_that_trains_uses_pages_again(device, kept):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, device], capture_output=True, text=True, check=True
    )
    before, within, after = map(int, done.stdout.split())
    assert min(before, after) > 8 * 2**10  # of 2**14 pages, or fewer larger ones, for each tensor
    assert (within < before / 16) is kept


def test_memory_is_given_back_when_training_fails():
    with pytest.raises(ValueError, match="stop"), kept_pages("cpu"):
        raise ValueError("stop")
