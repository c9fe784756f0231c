"""How long work reports itself; the command line draws bars, the library is quiet by default."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")
Advance = Callable[[int], None]


class Progress(Protocol):
    """A place to report to: bars with a rate and the time left, and one-line messages."""

    def bar(self, label: str, *, unit: str, total: int | None) -> AbstractContextManager[Advance]:
        """A bar of `total` units; call the result with the units done since the last call."""
        ...

    def say(self, message: str) -> None:
        """Show one line."""
        ...


class _Quiet:
    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Advance]:
        yield lambda done: None

    def say(self, message: str) -> None:
        pass


quiet: Progress = _Quiet()


def track(
    progress: Progress, items: Iterable[T], label: str, *, unit: str, total: int | None = None
) -> Iterator[T]:
    """Iterate over `items` behind a bar."""
    with progress.bar(label, unit=unit, total=total) as advance:
        for item in items:
            yield item
            advance(1)
