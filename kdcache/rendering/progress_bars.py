"""Progress drawn: live bars for a terminal or a notebook, a plain line now and then for a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn

    from kdcache.progress import Advance

EVERY = 10.0  # seconds between two plain lines


class Lines:
    """Reports to a log: a line per bar at most every `every` seconds, and one when it ends."""

    def __init__(self, stream: TextIO, every: float = EVERY) -> None:
        self.stream, self.every = stream, every

    def say(self, message: str) -> None:
        """Print one line."""
        print(message, file=self.stream, flush=True)

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Advance]:
        """Count `total` units (None: nobody knows how many)."""
        begun = shown = monotonic()
        done = 0

        def advance(units: int) -> None:
            nonlocal done, shown
            done += units
            if monotonic() - shown >= self.every:
                shown = monotonic()
                self.say(f"{label}: {_running(done, total, shown - begun, unit)}")

        try:
            yield advance
        finally:
            self.say(f"{label}: {_ended(done, total, monotonic() - begun, unit)}")


class Bars:
    """Draws bars on a terminal or in a notebook; those opened inside others share one display."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._live: RichProgress | None = None
        self._open = 0

    def say(self, message: str) -> None:
        """Print one line, above the bars if there are any."""
        if self._live is None:
            print(message, file=self.stream, flush=True)
        else:
            self._live.console.print(message, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Advance]:
        """A bar of `total` units (None: nobody knows how many)."""
        if self._live is None:
            self._live = _display(self.stream)
            self._live.start()
        live, self._open = self._live, self._open + 1
        task = live.add_task(label, total=total, unit=unit)
        try:
            yield lambda units: live.advance(task, units)
            if total is None:
                live.update(task, total=live.tasks[task].completed)
        finally:
            self._open -= 1
            if self._open == 0:
                live.stop()
                self._live = None


def _display(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    label = TextColumn(
        "{task.description}",
        markup=False,
        table_column=Column(no_wrap=True, overflow="ellipsis"),
    )
    return RichProgress(
        label, BarColumn(None), _figures(), console=Console(file=stream), expand=True
    )


def _figures() -> ProgressColumn:
    """A column with the count, the rate, the time gone and the time left; it fits 80 columns."""
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Figures(ProgressColumn):
        def render(self, task: Task) -> Text:
            unit, gone, left = task.fields["unit"], task.elapsed or 0.0, task.time_remaining
            if task.total == 1:
                return Text(clock(gone))
            count = compact(task.completed)
            if not task.finished and task.total is not None:
                count += f"/{compact(task.total)}"
            pace = compact(task.completed / max(gone, 1e-9))
            eta = "" if task.finished or left is None else f", {clock(left)} left"
            return Text(f"{count} {unit}, {pace} {unit}/s, {clock(gone)}{eta}")

    return Figures(table_column=Column(no_wrap=True))


def compact(number: float) -> str:
    """A count in at most six characters or so: 12,345 or 1.23M."""
    if number < 1e5:
        return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"
    value, suffix = (number / 1e3, "k") if number < 1e6 else (number / 1e6, "M")
    return f"{value:,.3g}{suffix}" if value < 1000 else f"{value:,.0f}{suffix}"


def _running(done: int, total: int | None, seconds: float, unit: str) -> str:
    text = f"{_count(done, total, unit)}, {_rate(done, seconds, unit)}"
    if total and done:
        text += f", {clock(seconds * max(0, total - done) / done)} left"
    return text


def _ended(done: int, total: int | None, seconds: float, unit: str) -> str:
    if total == done == 1:  # a rate of one thing says nothing
        return f"{seconds:,.1f} s"
    shown = None if total == done else total
    return f"{_count(done, shown, unit)} in {seconds:,.1f} s, {_rate(done, seconds, unit)}"


def _count(done: int, total: int | None, unit: str) -> str:
    return f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"


def _rate(done: float, seconds: float, unit: str) -> str:
    pace = done / max(seconds, 1e-9)
    return f"{pace:,.0f} {unit}/s" if pace >= 10 else f"{pace:,.2f} {unit}/s"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
