"""Processes that ship models, and end with the one that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from kdcache.manifest import Json
from kdcache.progress import Progress, quiet
from kdcache.shipping.run import ship, ship_both

SHIPPERS = 2  # processes


class Job(NamedTuple):
    """A model, the new folder for it in int8, and one for it in float32, or None."""

    source: Path
    int8: Path
    fp32: Path | None


def ship_all(jobs: Sequence[Job], progress: Progress) -> dict[str, Json]:
    """Ship models; returns the "bytes" of each folder that was written, by its name.

    Two processes of one thread each share them, as torch exports on one core.
    """
    found: dict[str, Json] = {}
    with _pool() as pool, progress.bar("shipping", unit="models", total=len(jobs)) as advance:
        for reports in pool.map(_ship, jobs):
            found |= {Path(report["folder"]).name: {"bytes": report["bytes"]} for report in reports}
            advance(1)
    return found


def _ship(job: Job) -> list[Json]:
    if job.fp32 is None:
        return [ship(job.source, job.int8, int8=True, progress=quiet)]
    return [*ship_both(job.source, fp32=job.fp32, int8=job.int8, progress=quiet).values()]


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    """Workers that end at once where this process is interrupted, or ends without a word.

    Each holds one end of a pipe, whose other this process alone has.
    """
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    workers = ProcessPoolExecutor(
        SHIPPERS, mp_context=context, initializer=_begin, initargs=(theirs,)
    )
    with theirs, ours, workers:
        try:
            yield workers
        except BaseException:
            ours.close()
            raise


def _begin(parent: Connection) -> None:
    """In a worker: Ctrl-C is the parent's affair, and the parent's end is the worker's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    with suppress(EOFError):
        parent.recv()
    os._exit(1)
