"""What reading taps costs a forward, and a forward with its backward, of a 6-layer encoder.

python benchmarks/taps.py --repeats 40
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from record import save

from kdcache.corpora.standard_library import prose
from kdcache.demo.encoder import encoder_folder
from kdcache.models.run import run
from kdcache.plans.batch import Batch
from kdcache.signals import Tap

DOCUMENTS, LENGTH = 32, 64
ASKED: dict[str, list[str]] = {
    "logits": [],
    "hidden": ["hidden"],
    "pooled": ["pooled"],
    "query, key, value": ["query", "key", "value"],
    "all of them": ["hidden", "pooled", "query", "key", "value"],
}
"""Beside the logits, of every layer."""


def batch() -> Batch:
    """Sentences of documentation, cut and padded to one width."""
    read = transformers.AutoTokenizer.from_pretrained(encoder_folder())
    made = read(
        prose()[:DOCUMENTS],
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
    )
    return Batch(docs=torch.arange(DOCUMENTS), **made)


def forward(model: Any, given: Batch, taps: list[Tap]) -> float:
    """Seconds of a forward without gradients."""
    started = time.perf_counter()
    with torch.inference_mode():
        run(model, given, taps)
    return time.perf_counter() - started


def step(model: Any, given: Batch, taps: list[Tap]) -> float:
    """Seconds of a forward and a backward from the logits alone: taps are read, none is used."""
    model.zero_grad()
    started = time.perf_counter()
    run(model, given, taps)[Tap("logits")].square().mean().backward()
    return time.perf_counter() - started


def measured(
    timed: Callable[[Any, Batch, list[Tap]], float], model: Any, repeats: int
) -> dict[str, Any]:
    """Median milliseconds, and the median ratio to the forward for logits next to it in time."""
    given, seconds = batch(), {name: [] for name in ASKED}
    taps = {name: [Tap("logits"), *map(Tap, names)] for name, names in ASKED.items()}
    for number in range(repeats + 2):
        for name in ASKED:
            took = timed(model, given, taps[name])
            if number > 1:  # the first prove and warm
                seconds[name].append(took)
    return {
        name: {
            "ms": 1000 * statistics.median(took),
            "ratio": statistics.median(
                one / plain for one, plain in zip(took, seconds["logits"], strict=True)
            ),
        }
        for name, took in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder_folder()).eval()
    save(
        "taps",
        {
            "documents": DOCUMENTS,
            "tokens": LENGTH,
            "repeats": repeats,
            "forward": measured(forward, model, repeats),
            "step": measured(step, model, repeats),
        },
    )


if __name__ == "__main__":
    main()
