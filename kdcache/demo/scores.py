"""Scores of shipped models on sentences nobody chose by, and gains of one over another."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.demo.sentences import Sentence
from kdcache.labels.metrics import Z95, wilson
from kdcache.manifest import Json
from kdcache.progress import Progress
from kdcache.shipping.folder import SETTINGS
from kdcache.shipping.measure import run_apart, timed_places
from kdcache.store.io.durable_writes import replace_synced

Right = npt.NDArray[np.bool_]


def predict(
    folder: Path, tests: Mapping[str, Sequence[Sentence]], path: Path, progress: Progress
) -> Json:
    """Let the shipped model in `folder` read every sentence alone, and write what it says of each.

    `path` becomes a CSV file with columns domain, label and prediction. Returns "p50_ms" and
    "p95_ms" of a call with one sentence on one thread.
    """
    texts = [sentence.text for sentence in chain(*tests.values())]
    timed = timed_places([len(text) for text in texts])
    labels = json.loads((folder / SETTINGS).read_text("utf-8"))["labels"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress.bar(f"scoring {folder.name}", unit="sentences", total=len(texts)) as advance,
    ):
        logits, figures = run_apart(
            folder, texts, None, timed, scratch=Path(scratch), advance=advance
        )
    predicted = iter(logits.argmax(1))
    rows = [f"{name},{s.label},{labels[next(predicted)]}" for name in tests for s in tests[name]]
    replace_synced(path, "\n".join(["domain,label,prediction", *rows, ""]).encode())
    return {name: figures[name] for name in ("p50_ms", "p95_ms")}


def right(path: Path) -> dict[str, Right]:
    """By domain, whether each prediction of a file is the label."""
    found: dict[str, list[bool]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["domain"], []).append(row["label"] == row["prediction"])
    return {domain: np.array(rows) for domain, rows in found.items()}


def accuracy(rows: Right) -> Json:
    """Accuracy with its 95% interval (Wilson 1927)."""
    share = float(rows.mean())
    return {"accuracy": share, "interval": list(wilson(share, len(rows))), "sentences": len(rows)}


def gain(before: Right, after: Right) -> Json:
    """Difference in accuracy of two models over the same sentences, with its 95% interval.

    The interval is mean ± 1.96 standard errors of the paired differences; it speaks of other
    sentences, not of other seeds.
    """
    difference = after.astype(float) - before.astype(float)
    mean = float(difference.mean())
    half = Z95 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return {"gain": mean, "interval": [mean - half, mean + half], "sentences": len(difference)}


def joined(found: Mapping[str, Right]) -> list[Right]:
    """The sentences of the first domain, and those of all others together if there are any."""
    home, *away = found.values()
    return [home, np.concatenate(away)] if away else [home]


def gains(before: Path, after: Path) -> Json:
    """Gains of one file of predictions over another at "home" and, over all others, "away"."""
    pairs = zip(joined(right(before)), joined(right(after)), strict=True)
    return dict(zip(("home", "away"), (gain(*pair) for pair in pairs), strict=False))
