"""Relations of queries, keys and values: what a cache has to hold for them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcache
from kdcache.errors import ConfigError
from kdcache.losses import CacheSpec, Relations
from kdcache.losses.base import Loss
from kdcache.signals import FEATURES, ModelSizes, parse_all
from kdcache.store import Cache
from kdcache.tasks import TASKS
from kdcache.training.objective import Objective
from kdcache.training.recipe import Recipe
from tests.conformance.test_losses import documents
from tests.objectives import evaluate
from tests.test_trainer import log_of, narrow, weights

__all__ = ["narrow"]  # a fixture

STUDENT = ModelSizes(outputs=3, hidden=48, layers=2, heads=4, key_heads=4, head_width=12)
TEACHER = ModelSizes(outputs=3, hidden=96, layers=4, heads=4, key_heads=4, head_width=24)


@pytest.fixture(scope="module")
def related(corpus: Path, classifier: Path, folder: Path) -> Cache:
    """What the attention of the last layer reads, and the layer before's queries, keys, values."""
    return kdcache.build(
        corpus,
        teacher=classifier,
        task="text-classification",
        out=folder / "related.zarr",
        signals=[
            "attention:layers=4,dtype=fp32",
            *(f"{kind}:layers=3-4,positions=all,dtype=fp32" for kind in FEATURES if kind in QKV),
        ],
        max_length=24,
        limit=96,
        keep_teacher_weights=True,
        progress=False,
    )


QKV = ("query", "key", "value")


@pytest.mark.parametrize("recipe", ["minilm", "minilmv2"])
def test_a_recipe_changes_the_student_and_leaves_what_its_relations_do_not_reach(
    recipe: str, related: Cache, narrow: str, tmp_path: Path
) -> None:
    heads = ["stages.relations.losses.relations.heads=8"] if recipe == "minilmv2" else []
    narrow_heads = ["stages.relations.losses.relations.heads=2"] if recipe == "minilm" else []
    quick = ["training.max_steps=4", "training.logging_steps=1", "training.save_strategy=no"]
    done = kdcache.train(
        related, recipe=recipe, out=tmp_path / "run", config=narrow, progress=False, seed=3,
        overrides=[*heads, *narrow_heads, *quick],
    )  # fmt: skip
    fresh = kdcache.make_student(related, config=narrow, seed=3).state_dict()
    after = weights(done.folder / "stages" / "relations")
    moved = {name for name in after if not torch.equal(after[name], fresh[name])}
    last = "bert.encoder.layer.1."
    softmaxed = f"{last}attention.self.key.bias"  # adds the same to every score of a query
    assert {name for name in moved if name.startswith(last)} - {softmaxed} == {
        f"{last}attention.self.{kind}.{part}" for kind in QKV for part in ("weight", "bias")
    } - {softmaxed}
    assert not any("classifier" in name or "pooler" in name for name in moved)
    assert any("encoder.layer.0.output" in name for name in moved)
    losses = [entry["loss_relations"] for entry in log_of(done.folder) if "loss_relations" in entry]
    assert losses[-1] < losses[0]


def test_made_from_hidden_states_they_are_those_of_stored_queries_keys_and_values(
    related: Cache,
) -> None:
    student = kdcache.make_student(related, init_from_teacher=[1, 2]).eval()
    batch_docs = related.plan.docs[:9]
    values = []
    for signal in ("attention", ""):
        loss = Relations(heads=8, signal=signal, layer_map="2:4")
        found = kdcache.make_objective(related, _recipe(loss), student)
        assert any(name.startswith("query/") for name in found.arrays) == (not signal)
        batch = related.batch(batch_docs, found.arrays)
        outputs = kdcache.models.run(student, batch, found.taps())
        values.append(float(found(outputs, batch)[0].detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0] > 0.01


def _recipe(loss: Loss) -> Any:
    return Recipe(name="relations", losses={"relations": loss})


def test_another_layer_other_relations_and_sums() -> None:
    given = documents("text-classification")
    one_by_one = [
        evaluate({"r": Relations(relations=(name,), layer_map="1:3", heads=4)}, given).total
        for name in ("query-key", "value-value")
    ]
    both: dict[str, Any] = {"relations": ("query-key", "value-value"), "heads": 4}
    found = evaluate({"r": Relations(**both, layer_map="1:3", combine="sum")}, given)
    assert found.total == pytest.approx(sum(one_by_one), rel=1e-12)
    above = evaluate({"r": Relations(**both, layer_map="2:4")}, given).total
    mean = evaluate({"r": Relations(**both, layer_map="1:3,2:4")}, given)
    assert mean.total == pytest.approx((found.total / 2 + above) / 2, rel=1e-12)
    for kind in ("query", "key", "value"):
        assert np.abs(mean.gradients[kind]).max(axis=(1, 2, 3, 4)).all()


def bound(loss: Relations, student: ModelSizes, *signals: str) -> Objective:
    spec = CacheSpec(
        task=TASKS["text-classification"],
        label_kind="classes",
        signals=parse_all(signals),
        shape=TEACHER,
        labelled=1,
    )
    return Objective({"relations": loss}, spec, student)


@pytest.mark.parametrize(
    ("loss", "student", "signals", "message"),
    [
        (
            {"heads": 9}, {}, ["attention:layers=4"],
            "heads of relations: 9 does not divide 48, the width of the student's query: .* as 8$",
        ),
        ({"heads": 0}, {"heads": 6, "key_heads": 6, "head_width": 8}, ["attention:layers=4"],
         "the student has 6 and the teacher 4: set it to a number"),
        ({"heads": 0}, {"key_heads": 2}, ["attention:layers=4"],
         r"the student has 4 \(of keys 2\) and the teacher 4: set it to a number"),
        ({"heads": 4, "relations": ("query-key",)}, {"key_heads": 2}, ["attention:layers=4"],
         "a query of the student is 48 wide, a key 24: leave it out"),
        ({"layer_map": "uniform"}, {}, ["attention:layers=4"], "that attend, from 1; got 0:0"),
        ({}, {}, ["logits:dense"],
         r"needs query; the cache holds .*: build one with --signal attention:layers=4$"),
        ({}, {}, ["attention:layers=2-3"], r"lacking 4"),
        ({"relations": ("query-query",)}, {}, ["query:layers=4,positions=all,fraction=0.5"],
         "needs query at positions=all; the cache holds positions=all,fraction=0.5"),
        ({}, {"heads": None, "head_width": None, "key_heads": None}, ["attention:layers=4"],
         "does not tell its"),
    ],
)  # fmt: skip
def test_what_student_or_cache_cannot_serve_is_refused(
    loss: dict[str, Any], student: dict[str, Any], signals: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        bound(Relations(**loss), replace(STUDENT, **student), *signals)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"relations": ("query",)}, "two of query, key and value with a - between them"),
        ({"relations": ("query-hidden",)}, "got 'query-hidden'"),
        ({"relations": ()}, "got 'none'"),
        ({"heads": -1}, "heads of relations is 1 or more, or 0"),
        ({"combine": "max"}, "combine of relations"),
        ({"weight": -1.0}, "weight of a relations loss"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Relations(**given)
