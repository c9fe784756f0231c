"""Entry point: runs a command and turns whatever ends it into a line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from functools import cache
from types import FrameType
from typing import Any

import typer

from kdcache.errors import KdcacheError
from kdcache.interrupts import handled_by
from kdcache_cli.app import app
from kdcache_cli.crash import write_log
from kdcache_cli.usage import hoist, require_values, usage_message

MOST = 300  # characters of an error that nobody worded for a person
OK, FAILED, MISUSE, INTERRUPTED = 0, 1, 2, 130

# Dependencies read these when imported, so they are set before any command imports one.
CALM = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "KINETO_LOG_LEVEL": "5",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run kdcache with `arguments` (those of the process by default); returns the exit code.

    0: done; 1: `verify` found damage, or something unexpected happened; 2: misuse or bad input;
    130: interrupted by Ctrl-C or SIGTERM.
    """
    given = hoist(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in given
    for name, value in CALM.items():
        os.environ.setdefault(name, value)
    _stopped.clear()
    with handled_by(_interrupt), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        return _run(given, debug)


_stopped = threading.Event()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _stopped.set()
    raise KeyboardInterrupt("terminated" if number == signal.SIGTERM else "")


def _run(arguments: list[str], debug: bool) -> int:
    try:
        require_values(arguments)
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader left: what Python would flush when it exits goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt as stop:
        return _fail(f"interrupted: {str(stop) or 'stopped by the user'}", INTERRUPTED, debug)
    except KdcacheError as error:
        return _fail(f"error: {error}", MISUSE, debug)
    except Exception as error:
        if _stopped.is_set():  # an interrupt in the middle of something can surface as anything
            return _fail("interrupted: stopped by the user", INTERRUPTED, debug)
        if message := usage_message(error):
            return _fail(f"error: {message}", MISUSE, debug)
        return _fail(f"error: {_unexpected(error, arguments)}", FAILED, debug)


@cache
def _command() -> Any:
    """All commands with their options, which take a tenth of a second to be read off their code."""
    return typer.main.get_command(app)


def _invoke(arguments: list[str]) -> int:
    command = _command()
    try:
        # Not command.main(): it would print usage errors its own way and swallow interrupts' words.
        with command.make_context("kdcache", arguments) as context:
            command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    return OK


def _unexpected(error: Exception, arguments: list[str]) -> str:
    """A fault of kdcache's own, or of its surroundings: what it is, and where all of it stands."""
    log = write_log(error, arguments)
    way = f"{log} tells what a report needs" if log else "run again with --debug for the traceback"
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text[:MOST]}".rstrip(": ") + f"; {way}"


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(" ".join(message.split()), file=sys.stderr)
    return code
