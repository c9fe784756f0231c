"""A teacher beside students: it reads documents by its own tokenizer, and each of them once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdcache.building.planner import scratch_folder
from kdcache.evaluation.opened import Opened, Reading
from kdcache.evaluation.scoring import Predictions, forward, run_teacher, scores, token_budget
from kdcache.manifest import Json
from kdcache.models import Teacher, Tokenizer, load_tokenizer
from kdcache.models.token_map import difference, token_map
from kdcache.plans import Plan
from kdcache.plans.batch import length_batches
from kdcache.progress import quiet

TIMED_DOCS = 512


class Ran(NamedTuple):
    """What a teacher says of documents.

    Attributes:
        plan: the documents as it reads them.
        found: what it says of each.
        told: its parameters, scores and documents a second, as a report has them.
    """

    plan: Plan
    found: Predictions
    told: Json


class SharedTeacher:
    """The teacher in a folder, for students that are scored one after the other.

    It runs once on documents that all of them read alike: what it says is kept, and its weights are
    not.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = source
        self._ran: dict[str, tuple[Predictions, Json]] = {}

    @contextmanager
    def beside(
        self, made: Opened, plan: Plan, file: Any, reading: Reading, **options: Any
    ) -> Iterator[Ran]:
        """What it says of the documents of a plan that a student made of `file`.

        `options` are those of `run_teacher`. Raises what that does.
        """
        with as_teacher_reads(self.source, made, plan, file, reading) as (own, tokenizer):
            key = own.sha256
            if key not in self._ran:
                self._ran[key] = self._run(own, tokenizer, options)
            yield Ran(own, *self._ran[key])

    def _run(self, plan: Plan, tokenizer: Tokenizer, options: Any) -> tuple[Predictions, Json]:
        loaded, found = run_teacher(self.source, plan, tokenizer, plan.docs, **options)
        told = {
            "parameters": loaded.identity["parameters"],
            **scores(plan, found),
            "documents_per_s": rate(loaded, plan, token_budget(plan, options["batch_size"])),
        }
        return found, told


@contextmanager
def as_teacher_reads(
    source: str | Path, made: Opened, plan: Plan, file: Any, reading: Reading
) -> Iterator[tuple[Plan, Tokenizer]]:
    """The documents of a student's plan of `file` as a teacher reads them, and by which tokenizer.

    A student may have fewer tokens than its teacher, or others: the file is then planned anew, for
    as long as the `with` block lasts. What is a token to a language model is not the same text to
    another tokenizer, so of those the plan stays, and `check_fit` holds the two against each other.
    """
    own = load_tokenizer(source, trust_remote_code=made.trusted)
    alike = not difference(token_map(made.tokenizer.plain), token_map(own.plain))
    if alike or not plan.task.labelled:
        yield plan, made.tokenizer
        return
    with scratch_folder(None) as scratch:
        yield replace(made, tokenizer=own).plan(file, reading, scratch, quiet), own


def rate(model: Teacher, plan: Plan, budget: int) -> float:
    """Documents a second over a sample, timed after a warm-up forward."""
    sample = plan.docs[:TIMED_DOCS]
    for _ in forward(model.model, plan, length_batches(plan, sample[:8], budget)):
        pass
    started = time.perf_counter()
    for _ in forward(model.model, plan, length_batches(plan, sample, budget)):
        pass
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return len(sample) / (time.perf_counter() - started)
