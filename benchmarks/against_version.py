"""Build, train and loader against those of another version of kdcache, taking turns on one machine.

    git worktree add /tmp/older 0598396
    python benchmarks/against_version.py /tmp/older --sst2 sst2 --teacher minilm-sst2 \\
        --text wikitext2/valid.txt --masked minilm-mlm --pairs 20

Each version is a process of its own that has imported all it needs. Both do the same job at the
same time, a turn each in an order that is drawn: a turn is a forward batch of a build, a step of
training, some batches of the loader or an opening of the cache, so that whatever else the machine
does falls on both. A pair is some turns in a row of both, its ratio the median of theirs. What
comes before the first turn is told apart ("before"). The answers are compared first: both
versions build the same arrays and end training at the same loss.

Where a process's memory happens to lie makes all its steps faster or slower, by up to a tenth: so
the pairs come from several processes of each version, and the interval from drawing processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

TASK = "text-classification"
SIGNALS = ["logits:dense", "hidden:layers=2-4-6,positions=cls,dtype=int8"]
READ, BATCH, TURNS = 4000, 32, 16  # documents of the cache and of a batch; turns of a pair, nearly
PASSAGES, FEW, LESS = 300, 4, 6  # the same of the masked language model
LOADED = 25  # batches of a turn of the loader
RESAMPLES = 10_000


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


class Side:
    """A version at work: a process that imports kdcache from `checkout`."""

    def __init__(self, checkout: Path, folder: Path, corpus: str, teacher: str) -> None:
        roots = [checkout, checkout / "kernels", checkout / "cli"]
        command = [sys.executable, __file__, "--worker", str(folder), corpus, teacher]
        self.process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, roots)),
                "OMP_NUM_THREADS": "1",  # the other core does what else the machine has to do
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, *words: object) -> None:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def shared_cache(older: Path, share: str, corpus: Path, teacher: str) -> Iterator[Workers]:
    """Where both versions find the same cache: one the older version made, as both read it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        workers = Workers(folder, older, str(corpus), teacher)
        with workers.at_work() as sides:
            sides["older"].say(share, 0)
            sides["older"].hear()
        shutil.copytree(folder / "older", folder / "newer")
        yield workers


@dataclass(frozen=True)
class Workers:
    """Starts a process of each version."""

    folder: Path
    older: Path
    corpus: str
    teacher: str

    @contextmanager
    def at_work(self) -> Iterator[dict[str, Side]]:
        checkouts = {"newer": Path(__file__).parents[1], "older": self.older}
        sides = {
            s: Side(c, self.folder / s, self.corpus, self.teacher) for s, c in checkouts.items()
        }
        try:
            yield sides
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.wait()


def compare(workers: Workers, job: str, pairs: int, processes: int) -> dict[str, Any]:
    """Ratios of the newer version's seconds to the older one's, pair by pair of each process."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(processes):
        with workers.at_work() as sides:
            found.append(take_turns(sides, job, pairs // processes, rng))
    ratios = np.array([one["ratios"] for one in found])
    drawn = rng.integers(0, processes, (RESAMPLES, processes))
    medians = np.median(ratios[drawn].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    print(f"{job}: median ratio {np.median(ratios):.4f}, 95% interval {low:.4f} to {high:.4f}")
    return {
        "turn": {f"{s}_seconds": float(np.median([one[s] for one in found])) for s in sides},
        "before_seconds": [one["before"] for one in found],
        "ratio": float(np.median(ratios)),
        "ratio_interval": [float(low), float(high)],
        "ratios": np.round(ratios, 4).tolist(),
    }


def take_turns(
    sides: dict[str, Side], job: str, pairs: int, rng: np.random.Generator
) -> dict[str, Any]:
    """What two processes took for a job, and their pairs' ratios."""
    for side in sides.values():
        side.say(job, pairs)
    before = {name: side.hear() for name, side in sides.items()}
    turns: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[float]] = {}
    while len(answers) < len(sides):
        for name in rng.permutation([name for name in sides if name not in answers]):
            sides[name].say("go")
            heard = sides[name].hear()
            if isinstance(heard, list):
                answers[name] = heard
            else:
                turns[name].append(heard)
    np.testing.assert_allclose(answers["newer"], answers["older"], rtol=1e-6)
    count = min(map(len, turns.values()))
    newer, older = (np.array(turns[name][:count]) for name in ("newer", "older"))
    parts = np.array_split(newer / older, pairs)
    return {
        "before": before,
        "newer": float(np.median(newer)),
        "older": float(np.median(older)),
        "ratios": [float(np.median(part)) for part in parts],
    }


def main() -> None:
    """Measure, and write a file a job, results/against_version_JOB.json."""
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), *sys.argv[3:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("older", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--sst2", required=True, help="folder with SST-2's train.tsv")
    parser.add_argument("--teacher", required=True, help="a classifier of its sentences")
    parser.add_argument("--text", required=True, help="text for a masked language model")
    parser.add_argument("--masked", required=True, help="a masked language model")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--processes", type=int, default=10, help="of each version, for each job")
    parser.add_argument(
        "--jobs", default="open,loader,kd,train,build,masked", help="those to measure anew"
    )
    args = parser.parse_args()
    from record import save

    figures: dict[str, Any] = {}
    shares = {
        "share": (Path(args.sst2) / "train.tsv", args.teacher),
        "share-masked": (Path(args.text), args.masked),
    }
    for share, (corpus, teacher) in shares.items():
        jobs = [j for j in args.jobs.split(",") if (j == "masked") == (share == "share-masked")]
        if jobs:
            with shared_cache(args.older, share, corpus, teacher) as workers:
                figures |= {j: compare(workers, j, args.pairs, args.processes) for j in jobs}
    commit = ["git", "-C", str(args.older), "rev-parse", "HEAD"]
    older = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    for job, found in figures.items():
        save(
            f"against_version_{job}",
            {
                "older": older,
                "pairs": args.pairs,
                "processes": args.processes,
                "turns": JOBS[job][1],
                **found,
            },
        )


if __name__ == "__main__":
    main()
