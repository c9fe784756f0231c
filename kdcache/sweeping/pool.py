"""Processes that work side by side, each on one piece after the other."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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
    """One process of `kdcache.sweeping.worker`, which imports until it is told what to do.

    Attributes:
        log: what it writes to once it is told; None: it is not.
    """

    def __init__(self, threads: int) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdcache.sweeping.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path} | dict.fromkeys(THREADS, str(threads)),
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            text=True,
        )
        self.log: Path | None = None

    def begin(self, common: Json, log: Path) -> None:
        """Tell it what all its work has in common."""
        self.log = log
        log.touch()
        self._send({**common, "log": str(log)})

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
        """Let it end: with a checkpoint, if it trains; at once, if it has nothing to do yet."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        if self.log is None:
            self.process.kill()

    def _send(self, value: Json) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # which shows when it is asked for its answer
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()


class Pool:
    """Workers that are started at once, import while their work is put together, and end together.

    Args:
        threads: of each of them.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self.count, self.threads = workers, threads
        self.common: Json = {}
        self.logs = Path()
        self.workers: list[Worker] = []

    def __enter__(self) -> Pool:
        try:
            for _ in range(self.count):
                self.workers.append(Worker(self.threads))
        except BaseException:  # interrupted: nobody calls __exit__ then
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @contextmanager
    def given(self, common: Json, logs: Path) -> Iterator[None]:
        """Let workers be asked, who all know `common` and write to files in `logs`.

        Interrupted, the block lets trainings write their checkpoints; a second time, it does not
        wait for them.
        """
        self.common, self.logs = common, logs
        try:
            yield
        finally:
            self._end()

    def _end(self) -> None:
        for worker in self.workers:
            worker.close()
        try:
            for worker in self.workers:
                worker.wait()
        except BaseException:
            for worker in self.workers:
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
            if not worker.alive:
                worker.close()
                worker.wait()
                worker = self.workers[number] = Worker(self.threads)
            if worker.log is None:
                worker.begin(self.common, self.logs / f"worker-{number + 1}.log")
            answer = worker.ask(work)
        finally:
            answers.put((number, work, answer))
