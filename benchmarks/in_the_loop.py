"""The teacher in the loop: a student learns from what it says there, as if a cache held that."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kdcache.models import Teacher, run
from kdcache.plans import Docs
from kdcache.plans.batch import Batch
from kdcache.progress import quiet
from kdcache.signals import LOGITS, Activations, LayerRows, ModelSizes, SoftLabels, Tap
from kdcache.store import Cache, open_cache
from kdcache.training.documents import CachedDocuments
from kdcache.training.mixture import Mixture
from kdcache.training.stages import Stages
from kdcache_kernels import topk_encode

WARM_UP = 5


class OnlineDocuments(CachedDocuments):
    """The cache's documents in the cache's order, with the teacher run on every batch."""

    ahead = False  # the teacher is timed in the loop, not beside it

    def __init__(self, source: CachedDocuments, teacher: Teacher) -> None:
        super().__init__(source.cache, [], seed=source.seed, window=source.window)
        self.teacher = teacher
        self.taps = tuple({tap: None for one in self.cache.signals.values() for tap in one.taps()})
        self.seconds: list[float] = []

    def read(self, docs: Sequence[int] | Docs) -> Batch:
        batch = super().read(docs)
        started = time.perf_counter()
        with torch.inference_mode():
            given = run(self.teacher.model, batch, self.taps, task=self.cache.plan.config.task)
            rows = {
                f"{name}/{part}": values
                for name, signal in self.cache.signals.items()
                for part, values in signal.exact(given).items()
            }
        self.seconds.append(time.perf_counter() - started)
        batch.update({name: values.clone() for name, values in rows.items()})
        return batch


class Online:
    """A signal whose rows come as the teacher gives them: no codec in between.

    All else about it is what `cached` says, the signal it stands for. Of soft labels the `k` most
    likely are kept, where that is given.
    """

    def __init__(self, cached: Any, k: int | None) -> None:
        self.cached, self.k = cached, k

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cached, name)

    def exact(self, given: Activations) -> dict[str, torch.Tensor]:
        """Rows of a batch: by tap, of truncated soft labels by their parts."""
        rows = {str(tap): values for tap, values in self.cached.values(given).items()}
        if self.k is None or str(LOGITS) not in rows:
            return rows
        names = ("ids", "logprobs", "tail_logmass", "tail_stat")
        return dict(zip(names, topk_encode(rows[str(LOGITS)], self.k), strict=True))

    def decode(self, rows: dict[str, torch.Tensor], tap: Tap, sizes: ModelSizes) -> Any:
        """The teacher's side of a batch that `OnlineDocuments` made."""
        if tap != LOGITS:
            return LayerRows(codes=rows[str(tap)])
        if str(LOGITS) not in rows:
            return SoftLabels(**rows)
        values = rows[str(LOGITS)]
        ids = torch.arange(sizes.outputs).expand(values.shape)
        return SoftLabels(ids=ids, logprobs=values.log_softmax(-1), values=values)


def train_once(
    cache: Cache, recipe: Any, out: Path, online: tuple[Teacher, int | None] | None
) -> dict[str, Any]:
    """Train one student; losses of every logged step, seconds of every step."""
    shutil.rmtree(out, ignore_errors=True)
    if online is not None:
        teacher, k = online
        cache = open_cache(cache.path)
        cache.signals = {name: Online(signal, k) for name, signal in cache.signals.items()}
    made = {"resume": False, "progress": quiet, "mixture": Mixture((cache,))}
    stages = Stages(cache, None, recipe, out, **made)
    if online is not None:
        for stage in stages.runs.values():
            stage.dataset = OnlineDocuments(stage.dataset, teacher)
    metrics = stages.train([])
    dataset = stages.run.dataset
    log = json.loads((out / "training_log.json").read_text())
    return {
        "losses": [entry["loss"] for entry in log if "loss" in entry],
        "step_seconds": metrics["step_seconds_median"],
        "data_wait_share": metrics["data_wait_share"],
        "teacher_seconds": (
            statistics.median(dataset.seconds[WARM_UP:] or dataset.seconds)
            if online is not None
            else None
        ),
    }
