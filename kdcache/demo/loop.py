"""What a teacher costs in the loop: its forward, timed over batches of a training."""

from __future__ import annotations

import time
from typing import Any

import torch

from kdcache.models import run
from kdcache.progress import Progress
from kdcache.signals import LOGITS, Tap
from kdcache.store import Cache
from kdcache.training.documents import CachedDocuments

WINDOW = 50  # as in the shipped recipes


def forward_seconds(
    model: Any,
    cache: Cache,
    *,
    batch: int,
    seed: int,
    hidden: bool,
    batches: int = 16,
    progress: Progress,
) -> float:
    """Mean seconds of a model's forward, over `batches` training batches spread over an epoch.

    With `hidden` it gives its hidden states too.
    """
    task, taps = cache.plan.task, [LOGITS, *([Tap("hidden")] if hidden else [])]
    documents = CachedDocuments(cache, [], seed=seed, window=WINDOW, batch=batch)
    starts = range(0, max(1, len(documents.order) - batch + 1), batch)
    starts = starts[:: max(1, len(starts) // batches)]
    read = [documents.read(documents.order[i : i + batch]) for i in starts]
    label, total = "timing the teacher in the loop", len(read)
    with progress.bar(label, unit="batches", total=total) as advance, torch.inference_mode():
        run(model, read[0], taps, task=task)  # the first is slower
        started = time.perf_counter()
        for each in read:
            run(model, each, taps, task=task)
            advance(1)
    return (time.perf_counter() - started) / len(read)
