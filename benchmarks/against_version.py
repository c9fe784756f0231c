"""Build, train and loader against those of another version of kdcache, in turn on one machine.

    git worktree add /tmp/older 0598396
    python benchmarks/against_version.py /tmp/older --sst2 sst2 --teacher minilm-sst2 --pairs 20

Each version is a process of its own that has imported all it needs; one works at a time, and which
of the two comes first in a pair is drawn. Times are those between the first and the last progress
of the work itself, so that checks before it are told apart ("before"). The answers are compared
first: both versions build the same arrays and end training at the same loss.
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
from pathlib import Path
from typing import Any

import numpy as np

TASK = "text-classification"
SIGNALS = ["logits:dense", "hidden:layers=2-4-6,positions=cls,dtype=int8"]
BUILT, STEPS, READ, BATCH = 300, 16, 4000, 32
ROUNDS = 12  # epochs of the loader
DRAWS = 10_000


class Stopwatch:
    """A Progress that notes how long the bar of one unit was up."""

    def __init__(self, unit: str) -> None:
        self.unit, self.seconds = unit, 0.0

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Any]:
        started = time.perf_counter()
        yield lambda done: None
        if unit == self.unit:
            self.seconds += time.perf_counter() - started

    def say(self, message: str) -> None:
        pass


def worker(folder: Path, corpus: str, teacher: str) -> None:
    """Do what standard input names, a line each, and answer with a line of JSON."""
    shared = folder / "shared.zarr"
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        job, name = line.split()
        found = JOBS[job](folder / name, shared, corpus, teacher)
        print(json.dumps(found), file=answers, flush=True)


def build_job(out: Path, shared: Path, corpus: str, teacher: str) -> dict[str, Any]:
    import kdcache

    watch, started = Stopwatch("tokens"), time.perf_counter()
    limit = READ if out == shared else BUILT
    options: dict[str, Any] = {"signals": SIGNALS, "limit": limit, "progress": watch}
    cache = kdcache.build(corpus, teacher=teacher, task=TASK, out=out, **options)
    whole = time.perf_counter() - started
    values = cache.read("hidden/L6/codes", cache.plan.docs).astype(np.int64)
    logits = float(cache.read("logits/values", cache.plan.docs).sum(dtype=np.float64))
    if out != shared:
        shutil.rmtree(out)
    return {"seconds": watch.seconds, "whole": whole, "answer": [int(values.sum()), logits]}


def train_job(out: Path, shared: Path, corpus: str, teacher: str) -> dict[str, Any]:
    import kdcache

    watch, started = Stopwatch("steps"), time.perf_counter()
    result = kdcache.train(
        shared,
        recipe="pkd-skip",
        out=out,
        init_from_teacher=[2, 4, 6],
        overrides=[f"training.max_steps={STEPS}", "training.logging_steps=1"],
        progress=watch,
    )
    whole = time.perf_counter() - started
    shutil.rmtree(out)
    return {"seconds": watch.seconds, "whole": whole, "answer": [result.metrics["losses"]["loss"]]}


def load_job(out: Path, shared: Path, corpus: str, teacher: str) -> dict[str, Any]:
    from kdcache.loader import CachedDocuments, make_loader
    from kdcache.store import open_cache

    cache = open_cache(shared)
    dataset = CachedDocuments(cache, list(cache.layouts), seed=0, batch=BATCH)
    loader, total, started = make_loader(dataset, batch_size=BATCH), 0, time.perf_counter()
    for epoch in range(ROUNDS):
        dataset.set_epoch(epoch)
        for batch in loader:
            total += int(batch["input_ids"][0, 0]) + len(batch["docs"])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "whole": seconds, "answer": [total]}


JOBS = {"build": build_job, "train": train_job, "loader": load_job}


class Side:
    """A version at work: a process that imports kdcache from `checkout`."""

    def __init__(self, checkout: Path, folder: Path, corpus: str, teacher: str) -> None:
        roots = [checkout, checkout / "kernels", checkout / "cli"]
        command = [sys.executable, __file__, "--worker", str(folder), corpus, teacher]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, job: str, name: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(job, name, file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def compare(sides: dict[str, Side], job: str, pairs: int) -> dict[str, Any]:
    """Ratios of the newer version's seconds to the older one's, pair by pair."""
    rng = np.random.default_rng(0)
    warm = {side: sides[side].do(job, "warm") for side in sides}
    np.testing.assert_allclose(warm["newer"]["answer"], warm["older"]["answer"], rtol=1e-6)
    times: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for pair in range(pairs):
        for side in rng.permutation(list(sides)):
            times[side].append(sides[side].do(job, f"pair{pair}"))
    newer, older = (np.array([t["seconds"] for t in times[s]]) for s in ("newer", "older"))
    ratios = newer / older
    medians = np.median(rng.choice(ratios, (DRAWS, pairs)), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    before = {s: float(np.median([t["whole"] - t["seconds"] for t in times[s]])) for s in times}
    print(f"{job}: median ratio {np.median(ratios):.4f}, 95% interval {low:.4f} to {high:.4f}")
    return {
        "newer_seconds": float(np.median(newer)),
        "older_seconds": float(np.median(older)),
        "before_seconds": before,
        "ratio": float(np.median(ratios)),
        "ratio_interval": [float(low), float(high)],
        "ratios": [round(float(r), 4) for r in ratios],
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
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--jobs", default="loader,train,build", help="those to measure anew")
    args = parser.parse_args()
    from record import save

    corpus = str(Path(args.sst2) / "train.tsv")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkouts = {"newer": Path(__file__).parents[1], "older": args.older}
        sides = {s: Side(c, folder / s, corpus, args.teacher) for s, c in checkouts.items()}
        sides["older"].do("build", "shared.zarr")  # an older format is read by both
        shutil.copytree(folder / "older", folder / "newer")
        figures = {job: compare(sides, job, args.pairs) for job in args.jobs.split(",")}
        for side in sides.values():
            side.process.kill()
    commit = ["git", "-C", str(args.older), "rev-parse", "HEAD"]
    older = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    for job, found in figures.items():
        save(f"against_version_{job}", {"older": older, "pairs": args.pairs, **found})


if __name__ == "__main__":
    main()
