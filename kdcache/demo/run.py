"""The demo: kdcache's main job on text that every machine has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdcache.demo.comparison import Settings, compare
from kdcache.demo.comparison_plot import draw_comparison
from kdcache.demo.sentences import Sentence
from kdcache.demo_corpus import docstrings
from kdcache.demo_teacher import encoder_folder
from kdcache.manifest import Json
from kdcache.progress import Shown, shown
from kdcache.store.files import require_writable

TEST_SENTENCES = 1200


def split(seed: int) -> tuple[list[Sentence], list[Sentence]]:
    """The standard library's docstrings, labelled by package: training and test sentences."""
    sentences = [Sentence(d.text, d.package) for d in docstrings()]
    order = np.random.default_rng(seed).permutation(len(sentences))
    shuffled = [sentences[i] for i in order]
    return shuffled[TEST_SENTENCES:], shuffled[:TEST_SENTENCES]


def run(out: str | Path, *, seed: int = 0, progress: Shown = None) -> Json:
    """Run the demo in the folder `out`; what an earlier run finished there is kept.

    Returns what `comparison.compare` does, and "plot", the path of a PNG.

    Raises MissingExtraError if the teacher's package is not installed, ConfigError if `out` holds
    something else.
    """
    progress = shown(progress)
    require_writable(Path(out))
    encoder_folder()
    train_set, test_set = split(seed)
    report = compare(Path(out), train_set, test_set, Settings(seed=seed), progress)
    plot = Path(out) / "demo.png"
    draw_comparison(plot, report)
    return {**report, "plot": str(plot)}
