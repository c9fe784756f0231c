"""The public surface is what it says, and says what it holds."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import kdcache
from kdcache.store import Cache


def test_every_public_name_resolves_and_is_documented() -> None:
    assert sorted(kdcache.__all__) == dir(kdcache)
    for name in kdcache.__all__:
        thing = getattr(kdcache, name)
        assert callable(thing)
        assert thing.__doc__, name


def test_public_names_are_where_type_checkers_see_them() -> None:
    """The lazy table and the imports under TYPE_CHECKING are the same."""
    source = inspect.getsource(kdcache)
    seen = re.findall(r"^    from kdcache\.([\w.]+) import (.+)$", source, re.MULTILINE)
    pairs = {name.strip(): module for module, names in seen for name in names.split(",")}
    assert pairs == kdcache._HOME
    assert set(pairs) == set(kdcache.__all__)


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'kdcache' has no attribute 'buildd'"):
        kdcache.buildd  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize("name", ["cache", "masked_cache", "causal_cache"])
def test_a_cache_a_plan_and_a_batch_say_what_they_are(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Cache = request.getfixturevalue(name)
    cache = kdcache.open_cache(made.path)
    plan = kdcache.open_plan(made.path)
    batch = next(cache.batches(4))
    documents, tokens = f"{plan.documents:,} documents", f"{plan.tokens:,} tokens"
    for text in (repr(cache), repr(plan)):
        assert documents in text
        assert tokens in text
    assert plan.config.task in repr(plan)
    assert plan.sha256[:12] in repr(plan)
    assert str(made.path) in repr(cache)
    assert made.manifest["teacher"]["name"] in repr(cache)
    assert "complete" in repr(cache)
    for signal in cache.signals:
        assert signal in repr(cache)
    assert repr(batch).startswith("<Batch of 4 documents: docs (4,) int64, input_ids (4, ")
    for array in cache.layouts:
        assert array in repr(batch)


def test_the_repr_of_a_plan_counts_masks(masked_cache: Cache) -> None:
    assert f"{masked_cache.plan.selected:,} masked positions" in repr(masked_cache.plan)


def test_ten_lines_of_python(tmp_path: Any, corpus: Any, classifier: Any) -> None:
    """Plan, build, open, read."""
    task: Any = "text-classification"
    kdcache.plan(corpus, tokenizer=classifier, task=task, out=tmp_path / "plan", limit=20)
    kdcache.build(tmp_path / "plan", teacher=classifier, task=task, out=tmp_path / "cache")
    cache = kdcache.open_cache(tmp_path / "cache")
    soft = cache.soft_labels(cache.plan.docs)
    assert tuple(soft.logprobs.shape) == (20, 3)
    assert soft.logprobs.exp().sum(-1).sub(1).abs().max() < 1e-5
    assert kdcache.verify(tmp_path / "cache", full=True) == []
    scores = kdcache.evaluate(classifier, corpus, cache=tmp_path / "cache")
    assert scores["teacher_rows"]["documents"] == 20
