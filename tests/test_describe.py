"""What reports say of plans and caches is what is in them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdcache.building.builder import estimate
from kdcache.building.describe import (
    BINS,
    describe_bytes,
    describe_cache,
    describe_plan,
    length_histogram,
)
from kdcache.errors import ConfigError
from kdcache.signals import ModelSizes, parse_all
from kdcache.store import Cache, open_cache

CACHES = ["cache", "masked_cache", "causal_cache"]


@pytest.mark.parametrize("longest", [1, 2, 12, 13, 48, 100, 128, 4096])
@pytest.mark.parametrize("shortest", [1, 7, 100])
def test_histogram_counts_every_length_once(shortest: int, longest: int) -> None:
    longest = max(shortest, longest)
    lengths = np.random.default_rng(longest).integers(shortest, longest + 1, 500)
    lengths[:2] = longest, shortest
    rows = length_histogram(lengths)
    assert len(rows) <= BINS
    assert [rows[0][0], rows[-1][1]] == [shortest, longest]
    assert all(after[0] > before[1] for before, after in itertools.pairwise(rows))
    assert sum(count for *_, count in rows) == len(lengths)
    for low, high, count in rows:
        assert count == ((lengths >= low) & (lengths <= high)).sum() > 0


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([128] * 9, [[128, 128, 9]]),
        ([3, 4, 500], [[3, 64, 2], [449, 500, 1]]),
        ([90, 128], [[90, 92, 1], [125, 128, 1]]),
    ],
)
def test_a_histogram_has_no_empty_bins(lengths: list[int], rows: list[list[int]]) -> None:
    assert length_histogram(lengths) == rows


@pytest.mark.parametrize("name", CACHES)
def test_a_plan_is_described_by_its_own_figures(name: str, request: pytest.FixtureRequest) -> None:
    plan = request.getfixturevalue(name).plan
    told = json.loads(json.dumps(describe_plan(plan)))
    assert told["documents"] == len(plan.docs) == sum(n for *_, n in told["length_histogram"])
    assert told["tokens"] == plan.per_document["doc_len"].sum()
    assert told["masked"] == plan.per_document["masked_len"].sum()
    assert told["parts"] * told["part_tokens"] >= told["tokens"]
    assert told["sha256"] == plan.sha256


def test_views_and_windows_are_told_apart_from_corpus_rows(masked_cache: Cache) -> None:
    told = describe_plan(masked_cache.plan)
    assert told["documents"] >= 2 * told["corpus_documents"] > 0


def test_labels_and_classes_are_told(cache: Cache) -> None:
    told = describe_plan(cache.plan)
    assert told["classes"] == ["asyncio", "email", "tkinter"]
    assert told["labelled"] == told["documents"]
    assert (told["text_columns"], told["label_column"]) == (["text"], "label")
    assert told["truncated"] > 0


@pytest.mark.parametrize("name", CACHES)
def test_bytes_told_before_the_build_are_those_of_the_files(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Cache = request.getfixturevalue(name)
    told = describe_bytes(made.plan, made.signals, made.shape)
    on_disk = {
        array: sum(f.stat().st_size for f in (made.path / array / "c").rglob("*") if f.is_file())
        for array in told["arrays"]
    }
    assert told["arrays"] == on_disk
    assert told["total"] == sum(on_disk.values())


def test_an_estimate_is_described_without_its_files(corpus: Path, classifier: Path) -> None:
    found = estimate(corpus, teacher=classifier, task="text-classification", limit=20)
    assert describe_plan(found.plan)["documents"] == 20
    assert describe_bytes(found.plan, found.signals, found.shape)["arrays"]["logits/values"] > 0


def test_bytes_of_a_signal_the_teacher_cannot_give_are_refused(cache: Cache) -> None:
    signals = parse_all(["logits:topk,k=64"])
    with pytest.raises(ConfigError, match="the teacher has 3 outputs"):
        describe_bytes(cache.plan, signals, ModelSizes(outputs=3, hidden=32, layers=4))


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_described_by_its_manifest_and_arrays(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Cache = request.getfixturevalue(name)
    told = json.loads(json.dumps(describe_cache(made)))
    assert told["teacher"]["weights_sha256"] == made.manifest["teacher"]["weights_sha256"]
    assert told["teacher"]["outputs"] == made.shape.outputs
    assert {a["name"]: a["bytes"] for a in told["arrays"]} == made.bytes
    assert told["total_bytes"] == sum(made.bytes.values())
    assert set(told["fidelity"]) == set(told["signals"]) == set(made.signals)
    assert told["completeness"] == {
        "complete": True,
        "parts": made.plan.parts,
        "committed": made.plan.parts,
        "missing": [],
    }
    shapes = {a["name"]: (tuple(a["shape"]), a["dtype"]) for a in told["arrays"]}
    for array, layout in made.layouts.items():
        assert shapes[array] == (layout.shape, str(layout.dtype))


def test_what_an_incomplete_cache_lacks_is_told(cache: Cache, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache.path, tmp_path / "copy.zarr"))
    shutil.rmtree(copy / "complete")
    shutil.rmtree(copy / "commits" / "000001")
    told = describe_cache(open_cache(copy))
    assert told["fidelity"] == {}
    assert told["completeness"]["complete"] is False
    assert told["completeness"]["missing"] == [1]
