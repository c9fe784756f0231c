"""Progress on stderr: live bars on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
from typing import TextIO

from kdcache.progress import Progress, is_first_process, quiet
from kdcache.rendering.progress_bars import Bars, Lines


def reporter(stream: TextIO | None = None) -> Progress:
    """Bars if `stream` (stderr by default) is a terminal, else lines; one process of many tells."""
    if not is_first_process():
        return quiet
    target = sys.stderr if stream is None else stream
    return Bars(target) if target.isatty() else Lines(target)
