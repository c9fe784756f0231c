"""Peak memory is this process's own, whoever started it."""

import subprocess
import sys

import numpy as np

from kdcache.memory import peak_rss_bytes

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
