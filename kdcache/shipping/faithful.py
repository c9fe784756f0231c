"""Whether a shipped model says what its torch model says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import ModelError
from kdcache.manifest import Json
from kdcache.plans import Docs
from kdcache.shipping.source import Source

MOST = 1e-4  # difference of two float32 logits, as a share of the largest of the text's or of 1
BATCHES = (1, 3, 8)
TEXTS = 48


def difference(source: Source, folder: Path) -> Json:
    """The largest difference between the logits of the torch model and of a shipped folder.

    Both read the same texts, of all lengths there are, alone and in padded batches of several.
    Returns "difference", "relative" to the largest logit of the text or to 1, "largest" and
    "texts".
    """
    from kdcache.shipping.infer import Model

    model, documents = Model(folder, threads=1), source.documents
    encoded: dict[int, Any] = {}
    worst, relative, largest = 0.0, 0.0, 0.0
    for places in _groups(source):
        for place in places:
            pair = None if documents.pairs is None else [documents.pairs[place]]
            encoded.setdefault(place, model.encode([documents.texts[place]], pair)[0])
        ours = source.run(documents.plan.docs[places])
        theirs = model.run([encoded[place] for place in places])
        apart = np.abs(ours - theirs).max(1)
        scale = np.abs(ours).max(1)
        worst = max(worst, float(apart.max()))
        relative = max(relative, float((apart / np.maximum(scale, 1)).max()))
        largest = max(largest, float(scale.max()))
    return {
        "difference": worst,
        "relative": relative,
        "largest": largest,
        "texts": len(encoded),
    }


def require_faithful(source: Source, folder: Path) -> Json:
    """What `difference` returns; ModelError if that is more than rounding explains."""
    found = difference(source, folder)
    if not found["relative"] <= MOST:  # not a number, too
        raise ModelError(
            f"{source.name} as ONNX says something else than in torch: logits differ by up to "
            f"{found['difference']:.2g} (largest {found['largest']:.3g}; {MOST:g} is allowed), so "
            "it is not written: serve it with transformers"
        )
    return found


def _groups(source: Source) -> Iterator[Docs]:
    """Places of documents in batches of each size: from the shortest to the longest, mixed."""
    order = np.argsort(source.documents.lengths, kind="stable")
    count = min(TEXTS, len(order))
    chosen = order[np.linspace(0, len(order) - 1, count).astype(int)]
    mixed = np.random.default_rng(0).permutation(chosen)
    for size in BATCHES if source.settings["padded"] else (1,):
        for start in range(0, count, size):
            yield mixed[start : start + size]
