"""TinyBERT and DistilBERT from real caches: stages, students of other widths, exact scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import kdcache
from kdcache.errors import ConfigError
from kdcache.losses import AttentionScores
from kdcache.store import Cache
from kdcache.training.recipe import load_recipe
from tests.test_trainer import log_of, narrow, weights

__all__ = ["narrow"]  # a fixture

QUICK = ("training.logging_steps=1", "training.save_strategy=no", "training.max_steps=8")
STAGES = ("intermediate", "prediction")
RATES = [f"stages.{stage}.training.learning_rate=2e-3" for stage in STAGES]
STATES = ("hidden:layers=0-2-4,positions=all,dtype=fp32", "attention:layers=2-4,dtype=fp32")


@pytest.fixture(scope="module")
def layered(corpus: Path, classifier: Path, folder: Path) -> Cache:
    """What TinyBERT reads of a classifier, and its queries and keys as they are, too."""
    whole = [f"{kind}:layers=2-4,positions=all,dtype=fp32" for kind in ("query", "key")]
    return kdcache.build(
        corpus,
        teacher=classifier,
        task="text-classification",
        out=folder / "layered.zarr",
        signals=["logits:dense", *STATES, *whole],
        max_length=24,
        limit=96,
        progress=False,
    )


@pytest.fixture(scope="module")
def general(prose_file: Path, masked_lm: Path, folder: Path) -> Cache:
    """What both recipes for masked language models read."""
    return kdcache.build(
        prose_file,
        teacher=masked_lm,
        task="masked-lm",
        out=folder / "general.zarr",
        signals=["logits:topk,k=16", *STATES],
        max_length=24,
        limit=64,
        progress=False,
    )


def as_wide(folder: Path, teacher: Path) -> str:
    """A configuration half as wide and half as deep as a teacher, with as many heads."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2}
    config = transformers.AutoConfig.from_pretrained(teacher, **sizes)
    config.save_pretrained(folder / "as-many-heads")
    return str(folder / "as-many-heads")


def test_tinybert_learns_layers_and_then_answers(
    layered: Cache, classifier: Path, tmp_path: Path
) -> None:
    result = kdcache.train(
        layered,
        recipe="tinybert",
        out=tmp_path / "tiny",
        config=as_wide(tmp_path, classifier),
        overrides=[*QUICK, *RATES],
        progress=False,
    )
    log = log_of(result.folder)
    stages = [entry["stage"] for entry in log]
    assert stages == ["intermediate"] * 8 + ["prediction"] * 8
    for stage, names in zip(STAGES, (("hidden", "attention"), ("kl",)), strict=True):
        entries = [entry for entry in log if entry["stage"] == stage]
        assert {key for key in entries[0] if key.startswith("loss_")} == {
            f"loss_{name}" for name in names
        }
        for name in names:
            values = [entry[f"loss_{name}"] for entry in entries]
            assert sum(values[-3:]) < sum(values[:3]), name
    before, after = weights(result.folder / "stages/intermediate"), weights(result.folder)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("recipe", ["tinybert-general", "distilbert"])
def test_a_student_of_a_masked_language_model_learns_every_part(
    recipe: str, general: Cache, tmp_path: Path
) -> None:
    overrides = [*QUICK, "training.learning_rate=2e-3"]
    result = kdcache.train(
        general,
        recipe=recipe,
        out=tmp_path / "student",
        init_from_teacher="2-4",
        overrides=overrides,
        progress=False,
    )
    log = log_of(result.folder)
    names = [name for name in log[0] if name.startswith("loss_")]
    wanted = {"distilbert": {"kl", "hard", "cosine"}, "tinybert-general": {"hidden", "attention"}}
    assert {name.removeprefix("loss_") for name in names} == wanted[recipe]
    for name in names:
        values = [entry[name] for entry in log]
        assert sum(values[-3:]) < sum(values[:3]), name


@pytest.mark.parametrize(("signal", "read"), [("attention", {"attention"}), ("", {"query", "key"})])
def test_the_scores_of_a_student_that_is_the_teacher_are_the_cached_ones(
    layered: Cache, classifier: Path, signal: str, read: set[str]
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    losses = {
        "same": AttentionScores(layer_map="2:2,4:4", signal=signal),
        "other": AttentionScores(layer_map="2:4", signal=signal),
    }
    recipe = replace(load_recipe("kd"), losses=losses)
    objective = kdcache.make_objective(layered, recipe, model)
    assert {name.partition("/")[0] for name in objective.arrays} == read
    data = kdcache.CachedDocuments(layered, objective.arrays, batch=16)
    batch = data.read(range(16))
    with torch.no_grad():
        _, terms = objective(kdcache.run(model, batch, objective.taps()), batch)
    assert float(terms["same"]) < 1e-8
    assert float(terms["other"]) > 1e-2


def test_a_student_with_other_heads_is_refused_by_name(layered: Cache, narrow: str) -> None:
    with pytest.raises(ConfigError, match=r"attention compares heads .* student's queries 2"):
        kdcache.train(layered, recipe="tinybert", out="none", config=narrow, progress=False)


def test_a_cache_without_queries_and_keys_is_told_what_to_build(
    cache: Cache, classifier: Path
) -> None:
    wanted = r"losses\.attention needs query; .* --signal attention:layers=2-4"
    overrides = ["losses.attention.weight=1", "losses.attention.kind=attention"]
    with pytest.raises(ConfigError, match=wanted):
        kdcache.train(
            cache,
            recipe="kd",
            out="none",
            init_from_teacher="2-4",
            overrides=overrides,
            progress=False,
        )
