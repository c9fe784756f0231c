"""Misuse, bad input, damage and interruption: exit codes and one line."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.store import Cache

CLASSIFY = ("--task", "text-classification")
Run = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]


def test_options_come_from_toml_and_the_command_line_wins(
    run: Run, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    file = tmp_path / "build.toml"
    file.write_text(
        f'corpus = "{corpus}"\nteacher = "{classifier}"\ntask = "text-classification"\n'
        'signal = ["logits:dense", "hidden:layers=2"]\nmax_length = 32\nlimit = 30\n'
        'text-column = "text"\ndry-run = true\n'
    )
    code, out, err = run("build", "--config", file, "--limit", 12, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["documents"], told["max_length"]) == (12, 32)
    assert "hidden/L2/codes" in told["bytes"]["arrays"]


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch_token = 3", "did you mean 'batch-tokens'?"),
        ("batch-tokens = [3, 4]", "batch-tokens takes one value; got a list of 2"),
        ("[build]\nlimit = 3", "unknown key"),
        ("[limit]\nn = 3", "limit is a table"),
        ("limit = ", "is not TOML"),
        ('limit = "many"', "--limit"),
    ],
)
def test_a_bad_options_file_is_refused(run: Run, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "build.toml"
    file.write_text(text)
    code, out, err = run("build", "x", "--teacher", "y", *CLASSIFY, "--config", file)
    assert (code, out) == (2, "")
    assert one_line(err)
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pln"], "did you mean 'plan'?"),
        (["plan", "x", "--tokenizr", "y"], "did you mean --tokenizer?"),
        (["plan"], "missing argument 'CORPUS'"),
        (["plan", "x", "--tokenizer", "y", "--out", "z"], "missing option '--task'"),
        (
            ["plan", "x", "--tokenizer", "y", "--out", "z", "--task", "mask-lm"],
            "unknown task 'mask-lm'; did you mean 'masked-lm'?",
        ),
        (
            ["plan", "x", "--tokenizer", "y", "--out", "z", *CLASSIFY, "--unit", "lin"],
            "did you mean 'line'?",
        ),
        (["build", "x", "--teacher", "y", *CLASSIFY], "build needs --out"),
        (["build", "x", "--teacher", "y", *CLASSIFY, "--dtype", "fp61"], "did you mean 'fp16'?"),
        (["build", "x", "--teacher", "y", *CLASSIFY, "--batch-tokens", "0"], "--batch-tokens"),
        (["inspect", "/nowhere/at/all"], "is neither a plan nor a cache"),
        (["verify", "/nowhere/at/all"], "no such cache"),
        (["recipes", "kdd"], "did you mean 'kd'?"),
        (
            ["train", "x", "--recipe", "kd", "--out", "y", "--init-from-teacher", "2,4"],
            "takes layers as in 2-4-6; got '2,4'",
        ),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(run: Run, arguments: list[str], says: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert one_line(err)
    assert says in err


def test_a_malformed_corpus_is_named_by_file_and_line(
    run: Run, tokenizer: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "a good line"}\n{"text": "a bad one"\n')
    code, _, err = run("plan", file, "--tokenizer", tokenizer, *CLASSIFY, "--out", tmp_path / "p")
    assert code == 2
    assert f"{file}:2: " in err.splitlines()[-1]
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_wherever_it_stands(run: Run, place: str) -> None:
    command = ["verify", "/nowhere/at/all"]
    code, _, err = run(*(["--debug", *command] if place == "before" else [*command, "--debug"]))
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: no such cache")


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that the library does not foresee, put into `inspect`."""

    def fail(*_: object) -> None:
        raise IsADirectoryError("some\nwhere " + 999 * "x")

    monkeypatch.setattr("kdcache.building.describe.describe_cache", fail)


@pytest.mark.usefixtures("fault")
def test_the_unexpected_is_a_line_that_names_a_log_with_all_of_it(
    run: Run, cache: Cache, state: Path
) -> None:
    code, out, err = run("inspect", cache.path)
    assert (code, out) == (1, "")
    assert err.startswith("error: unexpected IsADirectoryError: some where xxx")
    assert len(err) < 700
    assert one_line(err)
    (log,) = (state / "kdcache").iterdir()
    assert f"; {log} tells what a report needs" in err
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    assert f"command: kdcache inspect {cache.path}" in text
    assert "Traceback (most recent call last)" in text
    assert "transformers" in text


@pytest.mark.usefixtures("fault")
def test_debug_shows_the_traceback_of_the_unexpected(run: Run, cache: Cache, state: Path) -> None:
    code, _, err = run("inspect", cache.path, "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert str(state / "kdcache") in err.splitlines()[-1]


@pytest.mark.usefixtures("fault")
def test_without_a_home_the_log_lies_with_temporary_files(
    run: Run, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    _, _, err = run("inspect", cache.path)
    (log,) = (tmp_path / "tmp").iterdir()
    assert str(log) in err
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    _, _, err = run("inspect", cache.path)
    assert err.endswith("; run again with --debug for the traceback\n")


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_an_interrupted_build_says_so_and_goes_on_later(
    name: str, corpus: Path, classifier: Path, tmp_path: Path, run: Run, start: Start
) -> None:
    command = ["build", corpus, "--teacher", classifier, *CLASSIFY, "--out", tmp_path / "c"]
    command += ["--part-tokens", 256, "--batch-tokens", 64, "--max-length", 48]
    child = start("-m", "kdcache_cli", *command)
    commits = tmp_path / "c" / "commits"
    deadline = time.monotonic() + 120
    while len(list(commits.glob("0*"))) < 2 and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.Signals[name])
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "parts are committed; run the same command again" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("interrupted: ")
    code, _, err = run(*command)
    assert code == 0
    assert "resuming" in err


def test_a_reader_that_leaves_early_is_no_error(start: Start, made: tuple[Path, Path]) -> None:
    child = start("-m", "kdcache_cli", "inspect", made[1], "--json")
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.wait(60) != 0
    assert child.stderr.read() == ""
    child.stderr.close()
