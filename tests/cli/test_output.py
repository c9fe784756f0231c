"""Progress on stderr and figures as people read them."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path

import pytest

from kdcache.rendering.progress_bars import Bars, Lines, clock, compact
from kdcache_cli.output import print_json, show, size
from kdcache_cli.scores import print_metrics


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end() -> None:
    log = io.StringIO()
    with Lines(log, every=0.0).bar("reading", unit="rows", total=4000) as advance:
        advance(1000)
        advance(1000)
    first, second, last = log.getvalue().splitlines()
    assert first.startswith("reading: 1,000 of 4,000 rows, ")
    assert "left" in second
    assert last.startswith("reading: 2,000 of 4,000 rows in ")
    assert last.endswith(" rows/s")
    log = io.StringIO()
    with Lines(log).bar("reading", unit="rows", total=None) as advance:
        advance(7)
        advance(7)
    assert log.getvalue().startswith("reading: 14 rows in ")
    assert log.getvalue().count("\n") == 1


def test_a_bar_that_is_interrupted_still_says_how_far_it_came() -> None:
    log = io.StringIO()
    with suppress(KeyboardInterrupt), Lines(log).bar("x", unit="rows", total=9) as advance:
        advance(4)
        raise KeyboardInterrupt
    assert log.getvalue().startswith("x: 4 of 9 rows in ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_on_a_terminal_nest_and_let_lines_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    bars = Bars(screen)
    with bars.bar("running the teacher", unit="tokens", total=26_480_123) as advance:
        advance(1_000_000)
        bars.say("resuming [at] part 3")
        with bars.bar("verifying", unit="objects", total=None) as inner:
            inner(5)
        advance(25_480_123)
    bars.say("done")
    shown = screen.getvalue()
    assert "resuming [at] part 3" in shown
    assert "26.5M tokens, " in shown
    assert "5 objects, " in shown
    assert shown.endswith("done\n")


@pytest.mark.parametrize(
    ("number", "text"), [(0.5, "0.5"), (12_345, "12,345"), (123_456, "123k"), (2.65e7, "26.5M")]
)
def test_compact_counts(number: float, text: str) -> None:
    assert compact(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (30_996_400, "31 MB")]
)
def test_sizes_in_decimal_units(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "yes"), (1234, "1,234"), (0.123456, "0.1235"), ([1, 0.5], "1, 0.5")],
)
def test_values_as_people_read_them(value: object, text: str) -> None:
    assert show(value) == text


def test_nested_metrics_are_a_fact_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(
        {
            "losses": {"kl": 0.5},
            "peak_rss_bytes": 1500,
            "evaluation": {"cross_entropy": 2},
            "caches": [{"cache": "a", "documents": 3}, {"cache": "b", "documents": 4}],
        }
    )
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    told = {line[0]: line[-1].strip() for line in lines}
    assert told == {
        "losses: kl": "0.5",
        "peak rss bytes": "1.5 kB (1,500 bytes)",
        "evaluation: cross-entropy, nats": "2",
        "caches, 1: cache": "a",
        "caches, 1: documents": "3",
        "caches, 2: cache": "b",
        "caches, 2: documents": "4",
    }


def test_json_has_no_figure_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x"}
