"""How long work reports itself: bars where a person looks on, the log in scripts and pipelines."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Protocol, TypeVar

from kdcache.errors import ConfigError

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


class _Logged(_Quiet):
    """No bars; what a person should know goes to the log, which shows it unless told otherwise."""

    def say(self, message: str) -> None:
        logging.getLogger("kdcache").warning("%s", message)


quiet: Progress = _Quiet()
logged: Progress = _Logged()

Shown = Progress | bool | None
"""What callers give: False for silence, a Progress of their own, else bars for whoever looks on."""


def shown(progress: Shown) -> Progress:
    """The Progress that the `progress` of a call means.

    None and True are bars where stderr is a terminal, and bars or lines in a notebook. Everywhere
    else nothing is drawn, and messages, such as a guess about the labels, are warnings of the
    logger "kdcache". All processes of a run but the first are silent. Raises ConfigError for an
    object that is no Progress.
    """
    if progress is None or progress is True:
        return _for_people()
    if progress is False:
        return quiet
    if not (hasattr(progress, "bar") and hasattr(progress, "say")):
        raise ConfigError(
            "progress is True, False or an object with the methods of kdcache.progress.Progress; "
            f"got a {type(progress).__name__}"
        )
    return progress


def short(thing: object) -> str:
    """What to call files, models and caches in a label: a path's last part, several by number."""
    if isinstance(thing, list | tuple):
        return short(thing[0]) if len(thing) == 1 else f"{len(thing)} files"
    text = str(thing) if isinstance(thing, str | os.PathLike) else type(thing).__name__
    return text.rstrip("/").rpartition("/")[2] or text


def is_first_process() -> bool:
    """Whether this is the process of a distributed run that tells how it goes."""
    return os.environ.get("RANK", "0") == "0"


def _for_people() -> Progress:
    if not is_first_process():
        return quiet
    if _in_notebook():
        from kdcache.rendering.progress_bars import Bars, Lines

        return Bars(sys.stdout) if find_spec("ipywidgets") else Lines(sys.stdout)
    if sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty():
        from kdcache.rendering.progress_bars import Bars

        return Bars(sys.stderr)
    return logged


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


def track(
    progress: Progress, items: Iterable[T], label: str, *, unit: str, total: int | None = None
) -> Iterator[T]:
    """Iterate over `items` behind a bar."""
    with progress.bar(label, unit=unit, total=total) as advance:
        for item in items:
            yield item
            advance(1)
