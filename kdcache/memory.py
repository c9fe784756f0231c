"""How much memory this process has used."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux tells it as VmHWM, which starts anew with the program. `ru_maxrss`, used elsewhere, does
    not: a process started by a larger one begins with the peak of its parent.
    """
    if STATUS.exists():
        for line in STATUS.read_text("ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
