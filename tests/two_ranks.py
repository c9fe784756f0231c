"""What each of two ranks does in test_two_ranks.py, one thing after the other in one launch."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from kdcache.store import open_cache
from kdcache.training.balance import Balance
from kdcache.training.train import train
from kdcache_cli.main import main
from tests.steps import ALL, TURNS, Student, run, weigh
from tests.test_module_students import undropped

RANK = int(os.environ["RANK"])


class Stop(transformers.TrainerCallback):
    """Ends the second rank, and it alone, at a step, as a scheduler would."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if RANK == 1 and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def steps(jobs: list[dict[str, str]], out: Path) -> None:
    for number, job in enumerate(jobs):
        dtype = getattr(torch, job["dtype"])
        student = Student(open_cache(job["cache"]), job["config"], ALL[job["name"]], dtype)
        balance = Balance() if job.get("balance") else None
        trainer, taken = student.trainer(out / f"run {number}", turns=TURNS // 2, balance=balance)
        if way := job.get("weights"):
            weigh(student, trainer, way)
        found = (*run(trainer, taken), trainer.seen())
        for balancer in trainer.balancers:
            weights = json.dumps(balancer.weights())
            (out / f"weights {RANK}.json").write_text(weights, "utf-8")
        if RANK == 0:
            torch.save(found, out / f"{number}.pt")


def stopped(job: dict[str, Any], out: Path) -> None:
    try:
        train(job.pop("cache"), callbacks=[Stop()], **job)
    except KeyboardInterrupt:
        (out / f"stopped {RANK}").touch()


def heads(job: dict[str, Any]) -> None:
    train(job.pop("caches"), **job)


def module(job: dict[str, Any]) -> None:
    train(job.pop("cache"), student=undropped(), **job)


if __name__ == "__main__":
    gc.freeze()  # every trainer collects garbage, and would walk through all of torch
    jobs = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    out = Path(sys.argv[2])
    steps(jobs["steps"], out)
    stopped(jobs["stopped"], out)
    heads(jobs["heads"])
    module(jobs["module"])
    sys.exit(main(jobs["command"]))
