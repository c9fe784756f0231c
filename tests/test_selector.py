"""A policy that learns from scores on a dev set which documents a student learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kdcache.errors import ConfigError
from kdcache.losses.selecting import FEATURES, SELECTED
from kdcache.losses.selector import Selector, policy_logits, policy_loss
from kdcache.plans.subsample import uniforms
from kdcache.store import Cache
from kdcache.training.recipe import load_recipe
from kdcache.training.train import train
from tests.test_example_weights import StopAt, weigher
from tests.test_several_caches import other
from tests.test_trainer import assert_same_weights, narrow

__all__ = ["narrow", "other"]  # fixtures

L2A: dict[str, Any] = {"name": "selector", "features": list(FEATURES)}


def drawn(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and numbers in [0, 1)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((rows, 3))), torch.from_numpy(rng.random(rows))


def taken(policy: Selector, *batches: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    """What a policy decides of the batches of a step."""
    found = [policy.decide(*batch) for batch in batches]
    policy.take(policy.pending.tolist())
    return found


def test_a_score_moves_the_policy_against_the_loss_of_all_decisions_since_the_last() -> None:
    policy = Selector(3, keep=0.6, rate=0.2, memory=0.5)
    start = policy.policy.clone()
    taken(policy, drawn(7, 0))
    policy.reward(0.5)  # the first score is the baseline, and moves nothing
    assert torch.equal(policy.policy, start)
    batches = [drawn(5, 1), drawn(8, 2), drawn(2, 3)]
    kept = [*taken(policy, *batches[:2]), *taken(policy, batches[2])]
    assert 0 < torch.cat(kept).sum() < 15
    policy.reward(0.7)
    leaf = start.clone().requires_grad_()
    features = torch.cat([batch[0] for batch in batches])
    policy_loss(policy_logits(features, leaf), torch.cat(kept), 0.7 - 0.5).backward()
    adam = torch.optim.Adam([leaf], lr=0.2)
    adam.step()
    torch.testing.assert_close(policy.policy, leaf.detach(), rtol=1e-12, atol=0)
    assert float(policy.baseline) == pytest.approx(0.6)
    (kept_more,) = taken(policy, drawn(9, 4))
    policy.reward(0.55)
    leaf.grad = None
    policy_loss(policy_logits(drawn(9, 4)[0], leaf), kept_more, 0.55 - 0.6).backward()
    adam.step()
    torch.testing.assert_close(policy.policy, leaf.detach(), rtol=1e-12, atol=0)


def test_what_raises_scores_comes_to_be_kept_and_a_score_that_is_none_teaches_nothing() -> None:
    policy = Selector(3, keep=0.5, rate=0.3, memory=0.8)
    for step in range(60):
        features, uniform = drawn(40, step)
        (kept,) = taken(policy, (features, uniform))
        policy.reward(float((features[:, 1] * kept).sum() / kept.sum().clamp(min=1)))
    weights = policy.policy.clone()
    assert weights[1] > 3 * weights[[0, 2]].abs().max()
    taken(policy, drawn(5, 99))
    policy.reward(float("nan"))
    assert torch.equal(policy.policy, weights)
    assert int(policy.decisions) == 5
    told = policy.told(("first", "second"))
    assert told["policy"].keys() == {"first", "second", "bias"}
    assert told["scores"] == 60


def test_decisions_do_not_depend_on_how_a_step_is_cut(cache: Cache) -> None:
    whole, cut = weigher(cache, L2A), weigher(cache, L2A)
    for one in (whole, cut):
        assert one.selector is not None
        one.selector.forget()
        one.selector.policy += torch.linspace(-1, 1, 5)
    docs = cache.plan.docs[:30]
    batch = cache.batch(docs, whole.arrays)
    kept = whole.weigh(batch, 3)
    assert 0 < kept < 30
    pieces = [cache.batch(docs[i : i + 7], cut.arrays) for i in range(0, 30, 7)]
    assert sum(cut.weigh(piece, 3) for piece in pieces) == kept
    joined = torch.cat([piece["example_weight"] for piece in pieces])
    assert torch.equal(joined, batch["example_weight"])
    assert whole.selector is not None
    assert cut.selector is not None
    torch.testing.assert_close(cut.selector.pending, whole.selector.pending)
    later = cache.batch(docs, whole.arrays)
    whole.weigh(later, 4)
    assert not torch.equal(later["example_weight"], joined)


@pytest.mark.slow
def test_a_run_that_is_stopped_between_two_scores_goes_on_exactly(
    cache: Cache, narrow: str, tmp_path: Path
) -> None:
    overrides = ["training.logging_steps=1", "training.max_steps=6", "training.learning_rate=1e-3"]
    options: dict[str, Any] = {
        "recipe": "l2a",
        "config": narrow,
        "dev_split": 0.3,
        "dev_every": 2,
        "batch_size": 16,
        "overrides": overrides,
    }
    whole = train(cache, out=tmp_path / "whole", **options)
    told = whole.metrics["example_weights"]
    assert 0 < told["mean"] < 1
    assert told["selector"]["policy"].keys() == {*FEATURES, "bias"}
    with pytest.raises(KeyboardInterrupt):
        train(cache, out=tmp_path / "run", callbacks=[StopAt(3)], **options)
    resumed = train(cache, out=tmp_path / "run", resume=True, **options)
    assert_same_weights(whole.folder, resumed.folder)
    assert resumed.metrics["example_weights"]["selector"] == told["selector"]
    assert "documents weighed by | selector (" in (whole.folder / "README.md").read_text("utf-8")
    other = train(cache, out=tmp_path / "seed", **options, seed=1)
    assert other.metrics["example_weights"]["mean"] != told["mean"]


def test_documents_of_the_first_cache_are_kept_and_those_of_others_chosen(
    cache: Cache, other: Cache, narrow: str, tmp_path: Path
) -> None:
    def share(first: str) -> float:
        table = f'data.example_weights={{name="selector", keep=0.3, first="{first}"}}'
        more: dict[str, Any] = {"config": narrow, "dev_split": 0.2, "batch_size": 64, "epochs": 1}
        found = train([cache, other], out=tmp_path / first, overrides=[table], **more)
        return float(found.metrics["example_weights"]["mean"])

    few = 77 / (240 * 0.8 + 77)  # those of the second, about
    assert share("kept") == pytest.approx(1 - 0.7 * few, abs=0.1)
    assert share("chosen") == pytest.approx(0.3, abs=0.1)


def test_vectors_of_documents_are_features_of_unit_length(cache: Cache) -> None:
    one = weigher(cache, {**L2A, "vectors": "cls"})
    assert one.selector is not None
    assert len(one.selector.policy) == len(FEATURES) + 32 + 1
    one.selector.forget()
    docs = cache.plan.docs[:40]
    batch = cache.batch(docs, one.arrays)
    one.weigh(batch, 0)
    kept = batch["example_weight"]
    assert np.array_equal(kept.numpy(), uniforms(docs, 0, 0, SELECTED) < 0.5)
    assert one.vectors is not None
    (rows,) = (batch[name] for name in one.vectors.arrays)
    wanted = (kept - 0.5) @ normalize(rows.double().reshape(40, 32), dim=1)  # at even odds
    torch.testing.assert_close(one.selector.pending[len(FEATURES) : -2], wanted)
    with pytest.raises(ConfigError, match=r"^data.example_weights needs pooled; the cache holds"):
        weigher(cache, {**L2A, "vectors": "pooled"})


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"features": ["confidense"]}, "unknown feature of a selector 'confidense'; did you mean"),
        ({"vectors": "last"}, "unknown vectors of a selector 'last'"),
        ({"first": "all"}, "unknown first of a selector 'all'"),
        ({"keep": 1.0}, "keep of a selector is a probability above 0, below 1; got 1.0"),
        ({"memory": 1.0}, "memory of a selector is a share from 0 to below 1; got 1.0"),
        ({"rate": 0.0}, "rate of a selector must be more than 0"),
        ({"rates": 1.0}, "unknown field of data.example_weights 'rates'; did you mean 'rate'"),
    ],
)
def test_policies_that_cannot_be_are_refused(
    policy: dict[str, Any], message: str, cache: Cache
) -> None:
    with pytest.raises(ConfigError, match=message):
        weigher(cache, {"name": "selector", **policy})


STAGES = """
[[stages]]
name = "kept"
[stages.losses.kl]
[stages.data]
example_weights = "selector"

[[stages]]
name = "all"
[stages.losses.kl]
"""


@pytest.mark.parametrize(
    ("stages", "dev", "message"),
    [
        ("", {}, "learns from scores on a dev set, and this run has none: give one with --dev F"),
        (STAGES, {"dev_split": 0.2}, "stage 'kept' takes none: .* to the last stage alone"),
    ],
)
def test_without_scores_nothing_is_learnt_and_the_run_refused(
    stages: str, dev: dict[str, Any], message: str, cache: Cache, narrow: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "stages.toml"
    recipe.write_text(stages, "utf-8")
    chosen: Any = recipe if stages else load_recipe("l2a")
    with pytest.raises(ConfigError, match=message):
        train(cache, recipe=chosen, out=tmp_path / "run", config=narrow, **dev)
    assert not (tmp_path / "run").exists()
