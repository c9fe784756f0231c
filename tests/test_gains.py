"""The benchmark of gains: its intervals are those of textbooks, and a seed runs and is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdcache.corpora.standard_library import Docstring
from kdcache.demo.sentences import Corpus, Sentence
from tests.scripts import script_of


@pytest.fixture(scope="module")
def gain() -> Any:
    return script_of("distillation_gain")


def test_intervals_are_student_s_over_seeds_and_over_documents(gain: Any) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random((5, 200)) < 0.7, rng.random((5, 200)) < 0.8
    found = gain.paired(before, after)
    off = after.astype(float) - before
    assert found["difference"] == pytest.approx(off.mean())
    for name, axis in (("seeds", 1), ("documents", 0)):
        means = off.mean(axis)
        wanted = stats.ttest_1samp(means, 0).confidence_interval(0.95)
        assert found[name] == pytest.approx([wanted.low, wanted.high])
    widths = {name: found[name][1] - found[name][0] for name in ("seeds", "documents", "both")}
    assert max(widths["seeds"], widths["documents"]) * 0.9 < widths["both"]
    assert gain.paired(before[:1], after[:1])["seeds"] is None


def test_the_interval_of_both_covers_the_truth_as_often_as_it_says(gain: Any) -> None:
    rng, hits, trials, seeds = np.random.default_rng(1), 0, 300, 6
    for _ in range(trials):
        hard = rng.normal(size=300)  # what makes a document easier for the second model
        luck = rng.normal(scale=0.02, size=(seeds, 1))
        chance = 0.7 + 0.05 * hard + luck
        right = rng.random((2, seeds, 300)) < np.stack([np.full_like(chance, 0.7), chance])
        low, high = gain.paired(right[0], right[1])["both"]
        hits += low <= 0 <= high
    assert hits / trials > 0.93


def test_rates_are_tried_outwards_until_the_best_lies_inside(gain: Any) -> None:
    rates = gain.RATES
    found: dict[float, float] = {}
    assert gain.untried(found) == list(rates[1:-1])
    found |= dict(zip(rates[1:-1], (0.9, 0.8, 0.7), strict=True))
    assert gain.untried(found) == [rates[0]]
    found[rates[0]] = 0.85
    assert gain.untried(found) == []
    assert gain.best(found) == rates[1]
    assert gain.untried(found | {rates[0]: 0.95}) == []  # there is none below


def test_domains_away_are_scored_together(gain: Any) -> None:
    def run(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        flags = {m: {d: "".join(map(str, rng.integers(0, 2, n))) for d, n in sizes.items()}
                 for m in ("teacher", *gain.RECIPES)}  # fmt: skip
        return {"seed": seed, "rates": {}, "seconds": 1.0, "right": flags}

    sizes = {"home": 30, "one": 20, "other": 50}
    cut = gain.CUTS["reviews"]
    runs = [run(0), run(1)]
    away = gain.summary(cut, runs)["joined"]["away"]
    assert away["documents"] == 70
    ones = [r["right"]["kd"]["one"] + r["right"]["kd"]["other"] for r in runs]
    assert away["accuracy"]["kd"]["mean"] == pytest.approx(
        np.mean([o.count("1") for o in ones]) / 70
    )


@pytest.mark.slow
def test_a_seed_is_run_kept_and_summarised(
    gain: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    sentences: list[Docstring],
    masked_lm: Path,
) -> None:
    texts = [Sentence(s.text, s.package) for s in sentences]
    whole = Corpus(
        name="tiny", train=texts[60:], dev=texts[:30], tests={"home": texts[30:60]}, source=""
    )
    cut = gain.Cut(
        read=lambda folder: whole, train=48, labels=24, epochs=1, teacher_epochs=1, seeds=1
    )
    monkeypatch.setattr(gain, "LAYERS", (1, 2))
    monkeypatch.setattr(gain, "SIGNALS", ("logits:dense", "hidden:layers=0-2-4,positions=all"))
    assert cut.label_epochs == 2
    rates = dict.fromkeys(gain.RECIPES, 1e-3)
    found = gain.one_seed(tmp_path, cut, None, 0, rates, masked_lm)
    assert [path.name for path in tmp_path.iterdir()] == ["0.json"]
    assert set(found["right"]) == {"teacher", "finetune", "kd", "hidden"}
    assert gain.one_seed(tmp_path, cut, None, 0, rates, masked_lm) == found
    told = gain.summary(cut, [found])["domains"]["home"]
    assert told["documents"] == 30
    for model, accuracy in told["accuracy"].items():
        assert accuracy["mean"] == pytest.approx(found["right"][model]["home"].count("1") / 30)
    assert set(told["gains"]) == {"kd over finetune", "hidden over finetune", "hidden over kd"}
    json.dumps(told, allow_nan=False)
