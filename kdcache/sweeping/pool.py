"""Processes that work side by side, each on one piece after the other."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from kdcache.manifest import Json

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
Next = Callable[[], Json | None]
"""Gives the next piece of work; None: there is none at the moment."""
Done = Callable[[Json, Json], None]
"""Is told of a piece of work and of the answer to it."""


def threads_of(workers: int) -> int:
    """Threads of each of several workers: those of torch here, shared out."""
    import torch

    return max(1, torch.get_num_threads() // workers)


class Worker:
    """One process of `kdcache.sweeping.worker`, with a log of its own."""

    def __init__(self, common: Json, log: Path) -> None:
        count = str(common["threads"])
        path = os.pathsep.join(filter(None, sys.path))
        with log.open("a") as lines:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kdcache.sweeping.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=lines,
                env=os.environ | {"PYTHONPATH": path} | dict.fromkeys(THREADS, count),
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
                text=True,
            )
        self.log = log
        self._send(common)

    def ask(self, work: Json) -> Json:
        """The answer to a piece of work; a process that ends without one has failed."""
        self._send(work)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            answer: Json = json.loads(line)
            return answer
        code = self.process.wait()
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return {"failed": f"its process {ended}; {self.log} has the rest"}

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def wait(self) -> None:
        """Wait until it has ended."""
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def close(self) -> None:
        """Let it end: with a checkpoint, if it trains."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def _send(self, value: Json) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # which shows when it is asked for its answer
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()


class Pool:
    """Workers, started when there is work and ended together.

    Interrupted, the `with` block lets trainings write their checkpoints; a second time, it does
    not wait for them.
    """

    def __init__(self, common: Json, workers: int, logs: Path) -> None:
        self.common, self.logs = common, logs
        self.workers: list[Worker | None] = [None] * workers

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        there = [worker for worker in self.workers if worker is not None]
        for worker in there:
            worker.close()
        try:
            for worker in there:
                worker.wait()
        except BaseException:
            for worker in there:
                worker.process.kill()
            raise

    def run(self, following: Next, done: Done, *, most: int | None = None) -> None:
        """Do what `following` gives, on all workers, or on `most` of them.

        Both functions are called in this thread.
        """
        answers: queue.Queue[tuple[int, Json, Json]] = queue.Queue()
        idle = list(range(len(self.workers)))[:most]
        busy = 0
        while True:
            while idle and (work := following()) is not None:
                number = idle.pop(0)
                threading.Thread(
                    target=self._ask, args=(number, work, answers), daemon=True
                ).start()
                busy += 1
            if not busy:
                return
            number, work, answer = answers.get()
            busy -= 1
            idle.append(number)
            done(work, answer)

    def _ask(self, number: int, work: Json, answers: queue.Queue[tuple[int, Json, Json]]) -> None:
        answer: Any = {"failed": "its worker could not be started"}
        try:
            worker = self.workers[number]
            if worker is not None and not worker.alive:
                worker.close()
                worker.wait()
                worker = None
            if worker is None:
                worker = Worker(self.common, self.logs / f"worker-{number + 1}.log")
                self.workers[number] = worker
            answer = worker.ask(work)
        finally:
            answers.put((number, work, answer))
