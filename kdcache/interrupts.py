"""Ctrl-C and SIGTERM at a moment that suits.

Python raises KeyboardInterrupt between any two instructions, in a destructor or in the middle of
cleaning up, where it is lost or leaves something half done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Send both to `handler`, and to those of before again in the end; in the main thread only."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold interrupts back; the function given raises KeyboardInterrupt if one has come.

    A second one is not held back. Outside of the main thread, which alone gets signals, nothing is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came = False

    def hold(*_: Any) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    with handled_by(hold):
        yield check
