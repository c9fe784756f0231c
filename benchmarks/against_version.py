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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import against_jobs
import numpy as np

RESAMPLES = 10_000


class Side:
    """A version at work: a process that imports kdcache from `checkout`."""

    def __init__(self, checkout: Path, folder: Path, corpus: str, teacher: str) -> None:
        roots = [checkout, checkout / "kernels", checkout / "cli"]
        command = [sys.executable, against_jobs.__file__, str(folder), corpus, teacher]
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
    """Measure, and write a file a job, results/against_COMMIT_JOB.json."""
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
            f"against_{older[:7]}_{job}",
            {
                "older": older,
                "pairs": args.pairs,
                "processes": args.processes,
                "turns": against_jobs.JOBS[job][1],
                **found,
            },
        )


if __name__ == "__main__":
    main()
