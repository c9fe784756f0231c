"""The log of an error that nobody foresaw: all that a report of it needs."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("kdcache", "torch", "transformers", "tokenizers", "numpy", "zarr", "numba", "triton")


def write_log(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write command, versions and traceback to a file of its own; its path, None if none can be.

    It lies in `kdcache` in $XDG_STATE_HOME (~/.local/state by default), or else in the system's
    folder for temporary files; nobody but its owner can read it.
    """
    text = "\n".join(_lines(error, arguments))
    name = f"error-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            continue
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return folder / name
    return None


def _folders() -> Iterator[Path]:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if os.path.isabs(state):  # as the XDG specification has it, and no "~" that nobody expanded
        yield Path(state) / "kdcache"
    yield Path(tempfile.gettempdir())


def _lines(error: BaseException, arguments: Sequence[str]) -> Iterator[str]:
    yield f"time: {datetime.now().astimezone().isoformat(timespec='seconds')}"
    yield f"command: kdcache {shlex.join(arguments)}"
    yield f"python: {platform.python_version()} ({sys.executable}) on {platform.platform()}"
    yield "versions: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield ""
    yield "".join(traceback.format_exception(error))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
