"""The time of every part of a step, each without the parts within it, so that they add up."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch.profiler import record_function

from kdcache.errors import ConfigError

OTHER = "other"
"""What of a step is in none of its parts."""


class Clock(NamedTuple):
    """How moments are taken, and what lies between two, in seconds.

    Attributes:
        settle: waits until both of any moments have passed.
    """

    mark: Callable[[], Any]
    between: Callable[[Any, Any], float]
    settle: Callable[[], None]


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


CLOCKS = {
    "cpu": Clock(time.perf_counter, lambda begin, end: end - begin, lambda: None),
    # What the GPU does between two marks, waiting for the host in between included.
    "cuda": Clock(
        _event, lambda begin, end: begin.elapsed_time(end) / 1000, lambda: torch.cuda.synchronize()
    ),
}


def clock_of(device: torch.device) -> Clock:
    """The clock of a device; ConfigError for one whose work cannot be told apart."""
    if device.type not in CLOCKS:
        raise ConfigError(
            f"profile measures on {' and '.join(CLOCKS)}; got {device}: give --device cpu"
        )
    return CLOCKS[device.type]


class Recorded(NamedTuple):
    """A step in seconds: all of it, its parts, which add up to it, and what ran beside it."""

    seconds: float
    parts: dict[str, float]
    beside: dict[str, float]


@dataclass
class _Part:
    name: str
    begin: Any
    end: Any = None
    within: _Part | None = None
    range: Any = None


class Recorder:
    """Records the parts of one step after the other; `part` is what `kdcache.spans` takes.

    Parts of other threads run beside a step, and are no share of it.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock, self._thread = clock, get_ident()
        self.ranges = False  # whether parts are ranges of a profiler of torch's, too
        self._open: list[_Part] = []
        self._parts: list[_Part] = []
        self._beside: dict[str, float] = defaultdict(float)

    def begin(self) -> None:
        """Begin a step."""
        self._parts, self._open = [], []
        self.enter("")

    def end(self) -> Recorded:
        """End the step, and tell of it."""
        while self._open:
            self.leave()
        self.clock.settle()
        took = {id(part): self.clock.between(part.begin, part.end) for part in self._parts}
        own = dict(took)
        for part in self._parts:
            if part.within is not None:
                own[id(part.within)] -= took[id(part)]
        found: dict[str, float] = defaultdict(float)
        for part in self._parts[1:]:
            found[part.name] += own[id(part)]
        found[OTHER] = own[id(self._parts[0])]
        beside, self._beside = dict(self._beside), defaultdict(float)
        return Recorded(took[id(self._parts[0])], dict(found), beside)

    def enter(self, name: str) -> None:
        """Begin a part within the one that is open."""
        part = _Part(name, self.clock.mark(), within=self._open[-1] if self._open else None)
        if self.ranges and name:
            part.range = record_function(name)
            part.range.__enter__()
        self._open.append(part)
        self._parts.append(part)

    def leave(self) -> None:
        """End the part that is open."""
        part = self._open.pop()
        if part.range is not None:
            part.range.__exit__(None, None, None)
        part.end = self.clock.mark()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that runs within the context; between steps it is no part of any."""
        if get_ident() != self._thread:
            started = time.perf_counter()
            yield
            self._beside[name] += time.perf_counter() - started
        elif not self._open:
            yield
        else:
            self.enter(name)
            try:
                yield
            finally:
                self.leave()
