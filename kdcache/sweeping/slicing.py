"""What students lose slice by slice: what documents of the dev set add to scores, cut."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.building.planner import open_documents, scratch_folder
from kdcache.corpora.readers import name_of
from kdcache.errors import ConfigError
from kdcache.evaluation.cuts import Cut, read_cuts, with_lengths
from kdcache.evaluation.kept import Kept, keep, read_kept
from kdcache.evaluation.opened import Reading, opened
from kdcache.evaluation.scoring import BATCH, predict, require_finite, score_of, token_budget
from kdcache.evaluation.slices import most_lost
from kdcache.manifest import Json
from kdcache.plans import Docs
from kdcache.plans.batch import length_batches
from kdcache.progress import Progress, quiet
from kdcache.shipping.run import KINDS, kept_file
from kdcache.store import Cache
from kdcache.sweeping.shipped import TEACHER, teachers_folder
from kdcache.tasks.summed import Summed
from kdcache.training.dev import file_plan
from kdcache.training.evaluation import same_columns

SCORED = "scored"


def scored_folder(folder: Path, name: str) -> Path:
    """Where what documents add to the scores of a student, or of the teacher, is kept."""
    return folder / SCORED / name


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """How a dev set is cut, and the score by which its slices are told apart.

    Attributes:
        closed: whether a document is one row, of which an interval in closed form is right.
    """

    cuts: Sequence[Cut]
    score: Summed
    closed: bool

    def lost(self, folder: Path, name: str) -> Json:
        """What a student, or the teacher, loses to the teacher in float32: by kind and column, what
        `most_lost` tells; of a kind that was not scored nothing.
        """
        teacher = read_kept(kept_file(scored_folder(folder, TEACHER), KINDS[0]))
        kept = {kind: read_kept(kept_file(scored_folder(folder, name), kind)) for kind in KINDS}
        return {
            kind: self._lost(mine, teacher)
            for kind, mine in kept.items()
            if mine is not None and teacher is not None
        }

    def teachers_scores(self, folder: Path) -> Json:
        """Every metric of the teacher in float32 on all documents; empty: it was not scored."""
        kept = read_kept(kept_file(scored_folder(folder, TEACHER), KINDS[0]))
        return {} if kept is None else kept.scores

    def _lost(self, student: Kept, teacher: Kept) -> Json:
        documents = np.intersect1d(student.documents, teacher.documents)
        mine, theirs = (self._of(side, documents) for side in (student, teacher))
        told = most_lost(mine, theirs, self.cuts, documents, closed=self.closed)
        return {column: found and _plain(found) for column, found in told.items()}

    def _of(self, kept: Kept, documents: Docs) -> Summed:
        rows = np.searchsorted(kept.documents, documents)
        return replace(self.score, adds=kept.adds[rows])


def _plain(value: Any) -> Any:
    """Values as JSON has them: of an interval without an end nothing is known."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return value if all(map(math.isfinite, value)) else None
    return value


def read_slicing(
    cache: Cache, file: str, by: Sequence[str], config: Any, progress: Progress
) -> Slicing:
    """How the documents of the dev set `file` are cut; classes are those of a student's `config`.

    Raises ConfigError for a column that is not there and lengths that are all alike, CorpusError
    for a column that makes no slices.
    """
    columns: Any = same_columns(cache.plan.config.corpus, file)
    read = read_cuts(open_documents(file, cache.plan.task, columns), by, file)
    plan = file_plan(file, cache.original, config, quiet)
    cuts = with_lengths(read, plan, progress)
    for before, cut in zip(read, cuts, strict=True):
        if not before.names and len(cut.names) < 2:
            raise ConfigError(
                f"--by {cut.column} cuts nothing: all documents of {name_of(file)} have "
                f"{cut.names[0]}; slice by a column of it"
            )
    return Slicing(cuts=cuts, score=score_of(plan), closed=plan.task.rows == "document")


def score_student(cache: Cache, model: str, file: str, kept: Path, options: Json) -> None:
    """Run the model in the folder `model` on the dev set, and keep what documents add to its score.

    `options` are "device" and "trust_remote_code". Raises what `evaluate` does.
    """
    _score(cache, model, file, kept, options, None)


def score_teacher(cache: Cache, named: str | None, file: str, kept: Path, options: Json) -> None:
    """The same for the teacher: the folder that is named, or the one of the cache."""
    with tempfile.TemporaryDirectory() as scratch:
        source = teachers_folder(cache, named, Path(scratch))
        _score(cache, source, file, kept, options, cache.original)


def _score(
    cache: Cache, model: str, file: str, kept: Path, options: Json, known: Cache | None
) -> None:
    columns = same_columns(cache.plan.config.corpus, file)
    longest = None if known is None else known.plan.config.max_length  # a student's note tells it
    reading = Reading(**columns, max_length=longest)
    made = opened(model, cache.plan.task, known, **options)
    name = made.loaded.identity["name"]

    def seen(_: Docs, logits: torch.Tensor) -> None:
        require_finite(name, logits)

    with scratch_folder(None) as scratch:
        plan = made.plan(file, reading, scratch, quiet)
        made.require_reads(plan, file, quiet)
        batches = length_batches(plan, plan.docs, token_budget(plan, BATCH))
        keep(kept_file(kept, KINDS[0]), plan, predict(made.loaded.model, plan, batches, seen))
