"""Calls from Python draw bars where a person looks on, and are silent everywhere else."""

from __future__ import annotations

import inspect
import io
import os
import pty
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kdcache
from kdcache.errors import ConfigError
from kdcache.progress import is_first_process, logged, quiet, short, shown
from kdcache.rendering.progress_bars import Bars, Lines
from kdcache.store import Cache

ROOT = Path(__file__).parents[1]
REPORTING = [
    "ascend",
    "augment",
    "build",
    "compare",
    "copy",
    "evaluate",
    "export",
    "merge",
    "plan",
    "profile",
    "profile_build",
    "report",
    "ship",
    "sweep",
    "teach",
    "train",
    "verify",
]


class Labels:
    """A Progress that keeps the labels of its bars, and what it is told."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.messages: list[str] = []

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Any]:
        self.labels.append(label)
        yield lambda done: None

    def say(self, message: str) -> None:
        self.messages.append(message)


def test_every_public_function_that_takes_long_reports_by_default() -> None:
    public = {name: getattr(kdcache, name) for name in kdcache.__all__}
    functions = {n: inspect.signature(f) for n, f in public.items() if inspect.isfunction(f)}
    found = {name: s.parameters["progress"] for name, s in functions.items() if name in REPORTING}
    assert [name for name, s in functions.items() if "progress" in s.parameters] == REPORTING
    assert {parameter.default for parameter in found.values()} == {None}


def test_false_is_silence_and_a_progress_of_ones_own_is_used() -> None:
    mine = Labels()
    assert shown(False) is quiet
    assert shown(mine) is mine


def test_without_a_terminal_nothing_is_drawn_and_messages_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert shown(None) is shown(True) is logged
    shown(None).say("100% of the labels are guessed")
    (entry,) = caplog.records
    assert (entry.name, entry.levelname) == ("kdcache", "WARNING")
    assert caplog.messages == ["100% of the labels are guessed"]
    monkeypatch.setattr(sys, "stderr", None)
    assert shown(None) is logged


def test_a_script_without_a_terminal_is_told_what_a_person_is() -> None:
    code = "from kdcache.progress import shown\nshown(None).say('a guess')\nshown(False).say('no')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "a guess\n")


@pytest.mark.parametrize("wrong", ["yes", 1, print])
def test_what_is_no_progress_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"progress is True, False or an object with the methods"):
        shown(wrong)


class Terminal:
    closed = False

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_bars_are_drawn_by_one_process_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(shown(None), Bars)
    assert isinstance(shown(True), Bars)
    assert shown(False) is quiet
    monkeypatch.setenv("RANK", "1")
    assert not is_first_process()
    assert shown(True) is quiet


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_shows_bars_and_lines_where_it_has_no_widgets(
    monkeypatch: pytest.MonkeyPatch, widgets: bool
) -> None:
    """IPython's shell of a notebook is told by its class, as rich does it."""
    import builtins

    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    from rich import console

    monkeypatch.setattr(console, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr("kdcache.progress.find_spec", lambda name: widgets or None)
    assert isinstance(shown(None), Bars if widgets else Lines)
    assert shown(False) is quiet


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        ("a/b.csv", "b.csv"),
        (Path("/x/y.zarr"), "y.zarr"),
        ("s3://bucket/train.cache/", "train.cache"),
        (["one.csv"], "one.csv"),
        (["one.csv", "two.csv"], "2 files"),
        ({}, "dict"),
        ("/", "/"),
    ],
)
def test_labels_name_a_thing_by_its_last_part(thing: Any, name: str) -> None:
    assert short(thing) == name


def test_bars_say_what_is_read_built_trained_evaluated_and_moved(
    cache: Cache, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    told = Labels()
    task: Any = "text-classification"
    given: dict[str, Any] = {"progress": told}
    made = tmp_path / "small.zarr"
    kdcache.build(corpus, teacher=classifier, task=task, out=made, limit=24, **given)
    kdcache.train(made, out=tmp_path / "small", init_from_teacher=[1], epochs=1, **given)
    kdcache.evaluate(tmp_path / "small", corpus, teacher=classifier, limit=24, **given)
    kdcache.copy(made, tmp_path / "copy.zarr", **given)
    kdcache.export(made, tmp_path / "exported", **given)
    kdcache.verify(made, **given)
    assert told.labels == [
        "tokenising sentences.csv",
        "running the teacher classifier for small.zarr",
        "training small by kd from small.zarr",
        "tokenising sentences.csv",
        "evaluating small on sentences.csv",
        "evaluating the teacher classifier on the same",
        "copying small.zarr",
        "exporting small.zarr",
        "verifying small.zarr",
    ]


def in_a_terminal(code: str) -> str:
    """What a person sees of a Python program: its terminal, 80 columns wide."""
    ours, theirs = pty.openpty()
    paths = os.pathsep.join(str(ROOT / where) for where in (".", "kernels", "cli"))
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths, "TERM": "xterm", "COLUMNS": "80"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65536):
            seen += piece
    except OSError:  # how a terminal ends when its last program has left
        pass
    finally:
        os.close(ours)
    assert child.wait(60) == 0, seen
    return seen.decode()


def test_a_person_at_a_terminal_sees_a_bar_and_none_without(cache: Cache) -> None:
    code = (
        "import sys, kdcache\n"
        "assert not {'rich', 'torch', 'transformers', 'numba', 'triton'} & set(sys.modules)\n"
        f"kdcache.verify({str(cache.path)!r}, progress=False)\n"
        "print('silent until here')\n"
        f"kdcache.verify({str(cache.path)!r})\n"
    )
    before, _, after = in_a_terminal(code).partition("silent until here")
    assert before == ""
    assert "verifying cache.zarr" in after
    assert "objects/s" in after


def test_a_single_thing_has_a_time_and_no_rate() -> None:
    stream = io.StringIO()
    for total in (1, 4):
        with Lines(stream).bar("exporting", unit="models", total=total) as advance:
            advance(total)
    one, several = stream.getvalue().splitlines()
    assert re.fullmatch(r"exporting: \d+\.\d s", one)
    assert several.startswith("exporting: 4 models in ")
    assert several.endswith(" models/s")
