"""One student from several caches: steps of one cache each, in an order of seed and epoch alone."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.building.builder import build
from kdcache.corpora.standard_library import Docstring
from kdcache.errors import ConfigError
from kdcache.store import Cache
from kdcache.training.documents import CachedDocuments
from kdcache.training.loader import make_loader
from kdcache.training.mixing import MixedDocuments, pass_documents, steps_of
from tests.conftest import write_csv

DENSE = ["logits/values"]


@pytest.fixture(scope="module")
def other(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[Docstring], classifier: Path
) -> Cache:
    """Another corpus for the same teacher, its logits in another codec; no hidden states."""
    folder = tmp_path_factory.mktemp("other")
    rows = [(s.text.upper(), s.package) for s in sentences[::3][:77]]
    return build(
        write_csv(folder / "other.csv", rows),
        teacher=classifier,
        task="text-classification",
        out=folder / "other.cache",
        signals=["logits:topk,k=2"],
        max_length=48,
        seed=9,
    )


def mixed(cache: Cache, other: Cache, mix: Any = None, **options: Any) -> MixedDocuments:
    sets = [CachedDocuments(one, []) for one in (cache, other)]
    made = MixedDocuments(sets, mix, **{"seed": 3, **options})
    made.batch = 16
    return made


def turns(dataset: MixedDocuments, **options: Any) -> list[list[int]]:
    return list(make_loader(dataset, **{"batch_size": 16, **options}).batch_sampler)


def cache_of(dataset: MixedDocuments, docs: Any) -> int:
    (found,) = {int(np.searchsorted(dataset.starts, doc, "right")) - 1 for doc in docs}
    return found


def test_an_epoch_without_shares_is_a_pass_over_all_documents(cache: Cache, other: Cache) -> None:
    dataset = mixed(cache, other)
    steps = turns(dataset)
    assert sorted(chain.from_iterable(steps)) == sorted(
        [*cache.plan.docs, *(dataset.starts[1] + other.plan.docs)]
    )
    assert len(dataset) == cache.plan.documents + other.plan.documents == sum(map(len, steps))
    found = [cache_of(dataset, docs) for docs in steps]
    assert {0, 1} == set(found[:8])  # in turn, not one behind the other
    short = [len(docs) for docs in steps if len(docs) < 16]
    assert short == [len(steps[-1])] == [other.plan.documents % 16]


@pytest.mark.parametrize("window", [0, 4])
def test_the_order_is_a_function_of_seed_epoch_and_step(
    cache: Cache, other: Cache, window: int
) -> None:
    def order(seed: int, epoch: int, mix: Any = (0.5, 0.5)) -> list[int]:
        dataset = mixed(cache, other, mix, seed=seed, window=window)
        dataset.set_epoch(epoch)
        return [int(doc) for doc in dataset.order]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 1, (0.4, 0.6))
    assert torch.equal(torch.get_rng_state(), before)


def test_shares_are_of_the_steps_and_a_cache_starts_over_when_it_is_through(
    cache: Cache, other: Cache
) -> None:
    dataset = mixed(cache, other, (0.25, 0.75))
    steps = turns(dataset)
    assert len(steps) == -(-(cache.plan.documents + other.plan.documents) // 16)
    assert all(len(docs) == 16 for docs in steps)
    found = Counter(cache_of(dataset, docs) for docs in steps)
    assert found[0] == round(len(steps) / 4)
    assert dataset.shares == [found[0] / len(steps), found[1] / len(steps)]
    seen: list[list[int]] = [[], []]
    for epoch in range(12):
        dataset.set_epoch(epoch)
        for docs in turns(dataset):
            seen[cache_of(dataset, docs)] += docs
    for docs, one in zip(seen, (cache, other), strict=True):
        times = Counter(docs)
        assert len(times) == one.plan.documents
        assert max(times.values()) - min(times.values()) <= 1


def test_passes_are_whole_and_follow_each_other_wherever_epochs_cut_them() -> None:
    whole = pass_documents(10, start=0, stop=40, seed=1, cache=0)
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20, 30)] == [list(range(10))] * 4
    assert (whole[:10] != whole[10:20]).any()
    parts = [pass_documents(10, start=i, stop=i + 8, seed=1, cache=0) for i in range(0, 40, 8)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert (pass_documents(10, start=0, stop=10, seed=1, cache=1) != whole[:10]).any()


def test_steps_are_shared_out_by_largest_remainder() -> None:
    assert steps_of([90, 10], [0.5, 0.5], 10) == [5, 5]
    assert steps_of([90, 15], [0.7, 0.3], 10) == [8, 3]
    assert steps_of([10, 10, 13], [1 / 3, 1 / 3, 1 / 3], 10) == [2, 1, 1]


def test_a_share_that_comes_to_no_step_is_refused(cache: Cache, other: Cache) -> None:
    with pytest.raises(ConfigError, match=r"share of .*other\.cache, 0\.001 \(--mix\), comes to"):
        len(mixed(cache, other, (0.999, 0.001)))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("mix", [None, (0.3, 0.7)])
def test_any_number_of_ranks_takes_the_same_steps_in_as_many_turns(
    cache: Cache, other: Cache, mix: Any, drop_last: bool
) -> None:
    whole = [sorted(docs) for docs in turns(mixed(cache, other, mix), drop_last=drop_last)]
    for ranks, size in ((1, 4), (2, 8), (2, 2), (4, 1)):
        options = {"batch_size": size, "drop_last": drop_last, "ranks": ranks}
        shares = [turns(mixed(cache, other, mix), rank=rank, **options) for rank in range(ranks)]
        lengths = {len(share) for share in shares}
        per_step = 16 // (size * ranks)
        assert lengths == {len(whole) * per_step}
        for step, docs in enumerate(whole):
            at = slice(step * per_step, (step + 1) * per_step)
            found = [doc for share in shares for turn in share[at] for doc in turn]
            assert sorted(doc for doc in found if doc >= 0) == docs
            assert {~doc for doc in found if doc < 0} <= set(docs)  # stand in, of the same cache


def test_a_batch_is_that_of_its_cache_and_says_which(cache: Cache, other: Cache) -> None:
    arrays = [DENSE, list(other.layouts)]
    sets = [CachedDocuments(c, names) for c, names in zip((cache, other), arrays, strict=True)]
    dataset = MixedDocuments(sets, None, seed=3)
    dataset.batch = 16
    seen: Counter[int] = Counter()
    for batch in make_loader(dataset, batch_size=16):
        one = (cache, other)[batch.cache]
        expected = one.batch(batch["docs"].numpy(), arrays[batch.cache])
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        assert batch.to("cpu").cache == batch.cache
        seen[batch.cache] += len(batch["docs"])
    assert seen == {0: cache.plan.documents, 1: other.plan.documents}
    assert dataset.turn([~int(other.plan.docs[0] + dataset.starts[1])]).idle
