"""A version of kdcache at work for `against_version.py`: jobs that go on a turn at a time.

A process runs `python against_jobs.py FOLDER CORPUS TEACHER`; see `worker`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

TASK = "text-classification"
SIGNALS = ["logits:dense", "hidden:layers=2-4-6,positions=cls,dtype=int8"]
READ, BATCH, TURNS = 4000, 32, 16  # documents of the cache and of a batch; turns of a pair, nearly
PASSAGES, FEW, LESS = 300, 4, 6  # the same of the masked language model
LOADED = 25  # batches of a turn of the loader


class Turns:
    """A Progress that lets the work under the bar of one unit go on a turn at a time."""

    def __init__(self, unit: str, answers: Any) -> None:
        self.unit, self.answers = unit, answers
        self.created = self.began = time.perf_counter()

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Any]:
        if unit != self.unit:
            yield lambda done: None
            return
        print(json.dumps(time.perf_counter() - self.created), file=self.answers, flush=True)
        self._wait()
        yield self.turn
        self.turn()

    def turn(self, done: int = 0) -> None:
        """End a turn: say its seconds and wait for the next."""
        print(json.dumps(time.perf_counter() - self.began), file=self.answers, flush=True)
        self._wait()

    def _wait(self) -> None:
        sys.stdin.readline()
        self.began = time.perf_counter()

    def say(self, message: str) -> None:
        pass


def worker(folder: Path, corpus: str, teacher: str) -> None:
    """Do what standard input names, a line each, and answer with lines of JSON."""
    shared = folder / "shared.zarr"
    answers = sys.stdout
    sys.stdout = sys.stderr
    while line := sys.stdin.readline():
        job, pairs = line.split()
        unit, per_pair, work = JOBS[job]
        out = folder / "made"
        answer = work(out, shared, corpus, teacher, per_pair * int(pairs), Turns(unit, answers))
        shutil.rmtree(out, ignore_errors=True)
        print(json.dumps(answer), file=answers, flush=True)


def share_job(
    options: dict[str, Any],
    out: Path,
    shared: Path,
    corpus: str,
    teacher: str,
    turns: int,
    progress: Turns,
) -> list[float]:
    """The cache that both versions train from."""
    import kdcache

    kdcache.build(corpus, teacher=teacher, out=shared, progress=progress, **options)
    return []


def build_job(
    out: Path, shared: Path, corpus: str, teacher: str, turns: int, progress: Turns
) -> list[float]:
    import kdcache

    cache = kdcache.build(
        corpus,
        teacher=teacher,
        task=TASK,
        out=out,
        signals=SIGNALS,
        limit=turns * BATCH,
        batch_tokens=512,  # some 32 documents
        progress=progress,
    )
    values = cache.read("hidden/L6/codes", cache.plan.docs).astype(np.int64)
    logits = float(cache.read("logits/values", cache.plan.docs).sum(dtype=np.float64))
    return [int(values.sum()), logits]


def train_job(
    recipe: str,
    size: int,
    out: Path,
    shared: Path,
    corpus: str,
    teacher: str,
    turns: int,
    progress: Turns,
) -> list[float]:
    import kdcache

    result = kdcache.train(
        shared,
        recipe=recipe,
        out=out,
        init_from_teacher=[2, 4, 6],
        overrides=[
            f"training.max_steps={turns}",
            f"training.per_device_train_batch_size={size}",
            "training.save_strategy=no",
        ],
        progress=progress,
    )
    return [result.metrics["losses"]["loss"]]


def load_job(
    out: Path, shared: Path, corpus: str, teacher: str, turns: int, progress: Turns
) -> list[float]:
    import kdcache

    try:
        from kdcache.training.loader import make_loader
    except ModuleNotFoundError:  # where it was in versions before 26 November 2026
        from importlib import import_module

        make_loader = import_module("kdcache.loader").make_loader

    cache = kdcache.open_cache(shared)
    dataset = kdcache.CachedDocuments(cache, list(cache.layouts), seed=0, batch=BATCH)
    loader, total = make_loader(dataset, batch_size=BATCH), 0
    with progress.bar("reading", unit="batches", total=None) as advance:
        for epoch in range(turns * LOADED * BATCH // READ):
            dataset.set_epoch(epoch)
            for number, batch in enumerate(loader, 1):
                total += int(batch["input_ids"][0, 0]) + len(batch["docs"])
                if not number % LOADED:
                    advance(LOADED)
    return [total]


def open_job(
    out: Path, shared: Path, corpus: str, teacher: str, turns: int, progress: Turns
) -> list[float]:
    import kdcache

    total = 0
    with progress.bar("opening", unit="openings", total=None) as advance:
        for _ in range(turns):
            total += len(kdcache.open_cache(shared).plan.docs)
            advance(1)
    return [total]


JOBS = {  # unit of a turn, turns of a pair, work
    "share": (
        "nothing",
        0,
        partial(share_job, {"task": TASK, "signals": SIGNALS, "limit": READ}),
    ),
    "share-masked": (
        "nothing",
        0,
        partial(share_job, {"task": "masked-lm", "limit": PASSAGES}),
    ),
    "build": ("tokens", TURNS, build_job),
    "train": ("steps", TURNS, partial(train_job, "pkd-skip", BATCH)),
    "kd": ("steps", TURNS, partial(train_job, "kd", BATCH)),
    "masked": ("steps", LESS, partial(train_job, "kd", FEW)),
    "loader": ("batches", TURNS, load_job),
    "open": ("openings", TURNS, open_job),
}


if __name__ == "__main__":
    worker(Path(sys.argv[1]), *sys.argv[2:])
