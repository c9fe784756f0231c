"""A process that trains and ships students one after the other: it imports and opens once.

    python -P -m kdcache.sweeping.worker

Reads lines of JSON, first what all students have in common and which file its log is, then a piece
of work a line, and answers each with a line: {"done": ...}, or {"failed": why}. Whoever started it
ends it by closing its input, or by ending: a training under way then stops with a checkpoint.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from kdcache.errors import ConfigError, KdcacheError
from kdcache.manifest import Json
from kdcache.progress import Advance

PATIENCE = 60.0  # seconds that a run of a worker left behind may take to stop
Work = Callable[[Any, Json, Json], Any]


class Log:
    """A progress that writes what it is told to standard error, which is the worker's log."""

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Advance]:
        """Say that something begins."""
        self.say(label)
        yield lambda done: None

    def say(self, message: str) -> None:
        """Write a line."""
        print(message, file=sys.stderr, flush=True)


def main() -> None:
    """Serve whoever started this process, until its input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(lines, busy), daemon=True).start()
    import kdcache.training.train  # noqa: F401  # it takes seconds, in which nothing is asked yet

    first = lines.get()
    if first is None:
        return
    common = json.loads(first)
    with Path(common["log"]).open("a") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(common, lines, busy, answers)


def serve(
    common: Json, lines: queue.SimpleQueue[str | None], busy: threading.Event, answers: TextIO
) -> None:
    """Do the work of each line and answer it."""
    import torch

    from kdcache.store import open_cache

    torch.set_num_threads(common["threads"])
    cache = open_cache(common["cache"], teacher=common["of_teacher"])
    while (line := lines.get()) is not None:
        given = json.loads(line)
        busy.set()
        try:
            answer = _answer(WORK[given["work"]], cache, common, given)
        except KeyboardInterrupt:
            return
        busy.clear()
        with suppress(BrokenPipeError):  # nobody waits any more: the input has ended, too
            print(json.dumps(answer), file=answers, flush=True)
        gc.collect()
        if not gc.get_freeze_count():
            gc.freeze()  # of what is imported by now: to look through it took most of a second


def _listen(lines: queue.SimpleQueue[str | None], busy: threading.Event) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _answer(work: Work, cache: Any, common: Json, given: Json) -> Json:
    try:
        return {"done": work(cache, common, given)}
    except KdcacheError as error:
        return {"failed": str(error)}
    except Exception as error:  # whatever it is, the other students are still to be trained
        traceback.print_exc()
        text = " ".join(str(error).split())[:300]
        return {"failed": f"{type(error).__name__}: {text}".rstrip(": ")}


def _train(cache: Any, common: Json, given: Json) -> Json:
    """Train a student into its folder, or go on with it; returns the seconds that took."""
    from kdcache.training.run_folder import CHECKPOINTS, begun
    from kdcache.training.train import train

    folder = Path(given["folder"])
    _wait_for(folder, folder / CHECKPOINTS)
    started = time.perf_counter()
    train(
        cache,
        out=folder,
        resume=begun(folder),
        progress=Log(),
        **common["train"],
        **given["arguments"],
    )
    return {"seconds": time.perf_counter() - started}


def _wait_for(folder: Path, place: Path) -> None:
    """Wait for a worker of a sweep that was killed, which stops after the step it is in."""
    from kdcache.training.lock import require_free

    until = time.monotonic() + PATIENCE
    while True:
        try:
            return require_free(folder, place)
        except ConfigError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _ship(cache: Any, common: Json, given: Json) -> Json:
    """Ship a student in both kinds; returns the reports."""
    from kdcache.sweeping.shipped import ship_student

    options = {**common["ship"], "kept": given["kept"]}
    return ship_student(given["model"], Path(given["folder"]), options)


def _ship_teacher(cache: Any, common: Json, given: Json) -> Json:
    """Ship the teacher in both kinds; returns the reports."""
    from kdcache.sweeping.shipped import ship_teacher

    options = {**common["ship"], "kept": given["kept"]}
    return ship_teacher(cache, given["model"], Path(given["folder"]), options)


def _score(cache: Any, common: Json, given: Json) -> None:
    """Score a student in torch, document by document."""
    from kdcache.sweeping.slicing import score_student

    score_student(cache, given["model"], common["train"]["dev"], Path(given["kept"]), _run(common))


def _score_teacher(cache: Any, common: Json, given: Json) -> None:
    """Score the teacher in torch, document by document."""
    from kdcache.sweeping.slicing import score_teacher

    score_teacher(cache, given["model"], common["train"]["dev"], Path(given["kept"]), _run(common))


def _run(common: Json) -> Json:
    """How a model is run."""
    train = common["train"]
    device = train["device"] or "auto"
    return {"device": device, "trust_remote_code": train["trust_remote_code"]}


WORK: dict[str, Work] = {
    "train": _train,
    "ship": _ship,
    "ship_teacher": _ship_teacher,
    "score": _score,
    "score_teacher": _score_teacher,
}
"""What may be asked of a worker, by name."""

if __name__ == "__main__":
    main()
