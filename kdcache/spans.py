"""Named parts of what runs, for whoever watches: `kdcache profile`, or a profiler of torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from torch.autograd import profiler
from torch.profiler import record_function

Span = AbstractContextManager[Any]


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str: ...


WAIT, READ, COPY = "waiting for data", "reading", "host to device"
FORWARD, DECODE, LOSS = "forward", "decode", "loss"
BACKWARD, CLIP, OPTIMIZER = "backward", "clipping", "optimizer"
"""Parts of a step of training; a loss is LOSS and its name."""
TEACHING, ENCODE, FETCH = "running the teacher", "encoding", "device to host"
FIDELITY, WRITE, WRITER = "fidelity", "writing", "waiting for the writer"
"""Parts of a build beside READ, COPY and FORWARD; all are within TEACHING, and WRITE beside it."""

_NOTHING = nullcontext()
_watch: Callable[[str], Span] | None = None


def span(name: str, of: Sequence[Named] = ()) -> Span:
    """A part that runs within the context; `of` adds names to its own.

    Where nobody watches, it takes a microsecond. Under a profiler of torch's it is a range of its
    trace.
    """
    if _watch is None and not profiler._is_profiler_enabled:
        return _NOTHING
    whole = " ".join((name, *(one.name for one in of)))
    return record_function(whole) if _watch is None else _watch(whole)


@contextmanager
def watched(watch: Callable[[str], Span]) -> Iterator[None]:
    """Let `watch` make the context of every part meanwhile, in all threads."""
    global _watch  # one for the process: parts run in threads that nobody hands anything to
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before
