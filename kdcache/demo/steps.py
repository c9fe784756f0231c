"""The folder of a demo: each step makes one thing in it, once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.progress import Progress
from kdcache.store.io.durable_writes import occupied, replace_synced, require_writable

NOTE = "demo.json"


class Steps:
    """Does steps, and keeps what an earlier run in the same folder finished.

    Attributes:
        done: by name, what a step came to, with its "seconds" and the "bytes" it takes on disk.

    Raises ConfigError if the folder holds something else, or a run with other `settings`.
    """

    def __init__(self, out: Path, settings: Json, progress: Progress) -> None:
        self.out, self.progress = out, progress
        require_writable(out)
        settings = json.loads(json.dumps(settings))
        state = _read(out / NOTE)
        if state is None and occupied(out):
            raise ConfigError(f"{out} is not empty, or no folder; choose another with --out")
        if state is not None and state["settings"] != settings:
            raise ConfigError(f"{out} was made with other settings; choose another with --out")
        self._state: Json = state or {"settings": settings, "steps": {}}
        self.done: dict[str, Json] = self._state["steps"]
        out.mkdir(parents=True, exist_ok=True)
        self._save()

    def do(self, name: str, what: str, work: Callable[[Path], Json | None]) -> Json:
        """Let `work` make out/NAME unless that is done; returns what it came to."""
        if name in self.done:
            self.progress.say(f"{what}: kept from the earlier run")
            return self.done[name]
        self.progress.say(what)
        started = time.perf_counter()
        made = work(self.out / name)
        seconds = time.perf_counter() - started
        self.done[name] = {
            "what": what,
            "seconds": seconds,
            "bytes": size_of(self.out / name),
            **(made or {}),
        }
        self._save()
        return self.done[name]

    def _save(self) -> None:
        replace_synced(self.out / NOTE, json.dumps(self._state, indent=1).encode())


def afresh(folder: Path) -> Path:
    """A folder without what a step that was stopped left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _read(note: Path) -> Json | None:
    if not note.is_file():
        return None
    try:
        state: Json = json.loads(note.read_text("utf-8"))
        state["settings"], state["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{note} is no record of a demo; choose another folder with --out"
        ) from error
    return state
