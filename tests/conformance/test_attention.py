"""Queries, keys and values that are made of hidden states are those that the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kdcache
from kdcache.building.describe import describe_bytes
from kdcache.errors import ConfigError, DamageError, ModelError
from kdcache.losses.base import Match, weighted
from kdcache.maintenance.repair import repair
from kdcache.models.projections import projections
from kdcache.models.run import run
from kdcache.plans.batch import Batch
from kdcache.signals import ModelSizes, Tap, parse_all
from kdcache.training.objective import Objective
from kdcache.training.specs import cache_spec
from tests.conformance.conftest import Caches
from tests.damage import copy_of, files_of, flip
from tests.taps import APART, CAPPED, CLASSES, FAMILIES, QKV, batch_of, model_of

MADE = ("Bert", "Roberta", "XLMRoberta", "Electra", "DistilBert")
FEW = ("Bert", "DistilBert", "Qwen3", "MobileBert")
"""Tried each time."""
EXACT = ["attention:layers=1-4,dtype=fp32"]
EXACT += [f"{kind}:layers=1-4,positions=all,dtype=fp32" for kind in QKV]


@pytest.fixture(scope="module")
def batch(tokenizer: Path) -> Batch:
    return batch_of(tokenizer)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in (*FAMILIES, *APART, *CAPPED)
    ],
)
def test_projections_are_proven_or_refused(family: str, batch: Batch) -> None:
    model = model_of(family)
    if family not in MADE:
        with pytest.raises(ModelError, match=r"is not a linear map|gives no query"):
            projections(model, 2, CLASSES, batch)
        return
    for layer in (1, 3):
        maps = projections(model, layer, CLASSES, batch)
        taps = [Tap(kind, layer) for kind in QKV]
        with torch.no_grad():
            activations = run(model, batch, [Tap("hidden", layer - 1), *taps])
            for tap in taps:
                made = maps[tap.name](activations.rows(Tap("hidden", layer - 1)))
                torch.testing.assert_close(made, activations.rows(tap), rtol=1e-5, atol=1e-6)


def test_a_map_that_something_follows_is_refused(batch: Batch) -> None:
    model = model_of("Bert")
    key = model.get_submodule("bert.encoder.layer.1.attention.self.key")
    key.register_forward_hook(lambda module, read, made: made * 1.01)
    with pytest.raises(ModelError, match="the key of layer 2 of BertForSequenceClassification"):
        projections(model, 2, CLASSES, batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projections_of_16_bits_are_proven(dtype: torch.dtype, batch: Batch) -> None:
    model = model_of("Bert").to(dtype)
    assert projections(model, 2, CLASSES, batch)["key"].weight.dtype == dtype
    key = model.get_submodule("bert.encoder.layer.1.attention.self.key")
    key.register_forward_hook(lambda module, read, made: made * (1 + torch.finfo(dtype).eps))
    projections(model, 2, CLASSES, batch)  # a step of rounding apart
    key.register_forward_hook(lambda module, read, made: made * 1.2)
    with pytest.raises(ModelError, match="the key of layer 2"):
        projections(model, 2, CLASSES, batch)


def test_a_cache_gives_what_it_would_have_stored(caches: Caches) -> None:
    cache = caches.build("text-classification", EXACT)
    docs = cache.plan.docs[::2]
    for tap in [Tap(kind, layer) for kind in QKV for layer in (1, 4)]:
        made, stored = (cache.stored(docs, tap, of).dense() for of in ("attention", tap.name))
        torch.testing.assert_close(made, stored, rtol=1e-5, atol=1e-5)
    assert cache.signals["attention"].gives()[:2] == (Tap("hidden", 0), Tap("hidden", 3))
    assert {name for name in cache.files if name.startswith("attention/")} == {
        "attention/L1.safetensors",
        "attention/L4.safetensors",
    }


def test_scores_of_small_codes_are_near_those_of_the_teacher(caches: Caches) -> None:
    cache = caches.build("text-classification", [*EXACT, "small=attention:layers=4,group=16"])
    docs = cache.plan.docs[:1]

    def scores(of: str) -> torch.Tensor:
        query, key = (cache.stored(docs, Tap(kind, 4), of).dense() for kind in ("query", "key"))
        return query @ key.T

    exact = scores("attention")
    assert 0 < (scores("small") - exact).norm() / exact.norm() < 0.03


def test_rows_that_were_not_read_are_named(caches: Caches) -> None:
    cache = caches.build("text-classification", EXACT)
    batch = cache.batch(cache.plan.docs[:2], ["query/L1/codes"])
    assert len(cache.decode(batch, Tap("query", 1), "query").dense()) == batch.tokens
    with pytest.raises(
        ConfigError, match="query of layer 4 of attention is decoded from attention/L3"
    ):
        cache.decode(batch, Tap("query", 4), "attention")


class Queries:
    """A loss over the queries of the last layer, wherever the cache has them."""

    kind, over, weight = "queries", "rows", 1.0

    def __init__(self, signal: str = "") -> None:
        self.signal = signal

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        tap = Tap("query", teacher.layers)
        return (Match(Tap("query", student.layers), tap, positions="all", signal=self.signal),)

    def value(self, pairs: Any, step: Any) -> torch.Tensor:
        student, teacher = pairs[0].student, pairs[0].teacher.dense()
        return weighted((student - teacher).square().mean(1), step.weight)


def test_a_loss_reads_no_more_than_the_layer_it_is_of(caches: Caches) -> None:
    cache = caches.build("text-classification", EXACT)
    student = caches.sizes["text-classification"]
    losses: dict[str, Any] = {"queries": Queries("attention")}
    objective = Objective(losses, cache_spec(cache, 0), student)
    assert objective.arrays == ["attention/L3/codes"]
    teacher = kdcache.models.load_teacher(
        caches.teachers["text-classification"], task=CLASSES, device="cpu"
    )
    given = cache.batch(cache.plan.docs[:3], objective.arrays)
    activations = run(teacher.model, given, objective.taps(), task=CLASSES)
    loss, _ = objective(activations, given)
    assert float(loss) < 1e-9


def test_damaged_projections_are_refused_when_they_are_needed(
    caches: Caches, tmp_path: Path
) -> None:
    root = copy_of(caches.build("text-classification", EXACT), tmp_path)
    folder = root / "files/attention/L4.safetensors/c"
    flip(next(path for path in folder.rglob("*") if path.is_file()), 99)
    cache = kdcache.open_cache(root)
    docs = cache.plan.docs[:1]
    assert torch.isfinite(cache.stored(docs, Tap("query", 1), "attention").dense()).all()
    with pytest.raises(DamageError, match=r"L4\.safetensors"):
        cache.stored(docs, Tap("query", 4), "attention")


def test_a_plan_says_which_way_is_smaller(caches: Caches) -> None:
    plan = caches.build("text-classification", EXACT).plan
    three = [f"{kind}:layers=1-4,positions=all" for kind in QKV]
    narrow = ModelSizes(outputs=3, hidden=32, layers=4, heads=1, key_heads=1, head_width=8)
    many = ModelSizes(outputs=3, hidden=8, layers=4, heads=16, key_heads=16, head_width=8)

    def smaller(texts: list[str], sizes: ModelSizes) -> list[Any]:
        found: list[Any] = describe_bytes(plan, parse_all(texts), sizes).get("smaller", [])
        for way in found:
            totals = [
                describe_bytes(plan, parse_all(t), sizes)["total"] for t in (texts, way["instead"])
            ]
            assert way["bytes"] == totals[0] - totals[1] > 0
        return found

    (way,) = smaller(["attention:layers=1-4"], narrow)
    assert (way["signals"], way["instead"]) == (["attention"], three)
    assert "without the hidden states" in way["note"]
    assert not smaller(three, narrow)
    for texts in (three, three[:2]):
        (way,) = smaller(texts, many)
        assert way["signals"] == list(QKV[: len(texts)])
        assert way["instead"] == ["attention:layers=1-4"]
        assert "only for BERT, RoBERTa, XLM-R, ELECTRA and DistilBERT" in way["note"]
    assert not smaller([three[0], f"{three[1]},dtype=fp16"], many)  # of two codings
    assert not smaller([f"{text},group=64" for text in three], many)  # 64 does not divide 8
    assert not smaller([*three, "attention:layers=2"], many)  # which is there


def test_layers_asked_for_later_are_made_again_by_their_own_build(
    caches: Caches, tmp_path: Path
) -> None:
    parts = [caches.build(CLASSES, [f"attention:layers={layer}"]) for layer in (2, 3)]
    both = tmp_path / "both"
    kdcache.merge([part.path for part in parts], both)
    cache = kdcache.open_cache(both)
    docs = cache.plan.docs
    for part, layer in zip(parts, (2, 3), strict=True):
        found, wanted = (one.stored(docs, Tap("key", layer)).dense() for one in (cache, part))
        assert torch.equal(found, wanted)
    whole = files_of(both)
    for array in cache.layouts:
        next(p for p in (both / array / "c").rglob("*") if p.is_file()).unlink()
    (both / "commits/000000/zarr.json").write_text("{}")
    assert repair(both).left == ()
    assert files_of(both) == whole
