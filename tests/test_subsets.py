"""Which rows a fraction keeps follows from the plan: a share of every document's, all alike."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kdcache.errors import ConfigError
from kdcache.plans import Plan, round_up
from kdcache.plans.subsample import spread
from kdcache.signals import from_json, parse
from kdcache.store import Cache
from kdcache.tasks import Space, Subset

FRACTIONS = [0.003, 0.2, 1 / 3, 0.999]
LOGITS = ["dense", "topk,k=8", "topk-small,k=8", "sampled,n=12", "hidden-head,dtype=int8"]


def mixed(x: int) -> int:
    """The finaliser of SplitMix64, on whole numbers of Python."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def sampled_by_hand(plan: Plan, doc: int, space: Space, fraction: float) -> tuple[int, list[int]]:
    """Where a document's kept rows begin, and which they are, as docs/decisions/0014 has it."""
    start, length = (int(x[0]) for x in plan.spans(np.array([doc]), space))
    part = doc // plan.rows["document"]
    begin = start - part * plan.rows[space]
    first, end = math.ceil(begin * fraction), math.ceil((begin + length) * fraction)
    size = round_up(math.ceil(plan.rows[space] * fraction))
    step = (doc + 1) * 0x9E3779B97F4A7C15
    drawn = mixed((plan.config.seed + step) % 2**64) % max(length, 1)
    count = end - first
    return part * size + first, [(j * length + drawn) // count for j in range(count)]


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name", ["masked_cache", "causal_cache"])
def test_rows_follow_from_the_plan_as_the_record_says(
    name: str, fraction: float, request: pytest.FixtureRequest
) -> None:
    plan = request.getfixturevalue(name).plan
    base = plan.task.rows
    space, ends = Subset(base, fraction), np.zeros(plan.parts, int)
    for doc in plan.docs.tolist():
        one = np.array([doc])
        (start,), (count,) = plan.spans(one, space)
        wanted, rows = sampled_by_hand(plan, doc, base, fraction)
        assert (start, plan.sampled_rows(one, space).tolist()) == (wanted, rows)
        length = int(plan.spans(one, base)[1][0])
        assert len(rows) == count
        assert rows == sorted(set(rows) & set(range(length)))
        assert abs(count - length * fraction) < 1
        part = doc // plan.rows["document"]
        assert start == part * plan.part_rows(space) + ends[part]  # no gap between documents
        ends[part] += count
    assert (ends <= plan.part_rows(space)).all()
    assert plan.count(space) == ends.sum()
    assert abs(plan.count(space) - plan.count(base) * fraction) <= plan.parts
    several = plan.docs[[5, 0, 3]]
    lens = plan.spans(several, base)[1]
    before = [0, int(lens[0]), int(lens[0] + lens[1])]
    alone = [plan.sampled_rows(several[i : i + 1], space) + before[i] for i in range(3)]
    np.testing.assert_array_equal(plan.sampled_rows(several, space), np.concatenate(alone))


@pytest.mark.parametrize(("length", "count"), [(1, 1), (7, 3), (40, 8), (41, 8), (9, 9), (5, 0)])
def test_every_row_is_kept_by_as_many_draws_as_any_other(length: int, count: int) -> None:
    draws = np.arange(length)
    rows = spread(np.full(length, length), np.full(length, count), draws)
    assert np.bincount(rows, minlength=length).tolist() == [count] * length
    gaps = np.diff(rows.reshape(length, count), axis=1)
    assert ((gaps >= length // max(count, 1)) & (gaps <= -(-length // max(count, 1)))).all()


def test_another_seed_keeps_other_rows(causal_cache: Cache) -> None:
    plan, space = causal_cache.plan, Subset("token", 0.2)
    other = replace(plan, config=replace(plan.config, seed=1))
    rows = [p.sampled_rows(p.docs, space) for p in (plan, other)]
    assert len(rows[0]) == len(rows[1])
    assert 0.1 < np.isin(rows[0], rows[1]).mean() < 0.3


@pytest.mark.parametrize(
    "text", [*(f"logits:{x}" for x in LOGITS), "hidden:layers=1,positions=all"]
)
def test_a_fraction_of_one_is_none_at_all(text: str) -> None:
    whole, one, some = (parse(text + more) for more in ("", ",fraction=1", ",fraction=0.25"))
    assert whole == one != some
    assert "fraction" not in whole.to_json()
    assert some.to_json() == {**whole.to_json(), "fraction": 0.25}
    assert from_json(some.kind, some.to_json()) == some


BAD = {
    "logits:topk,fraction=0": "fraction of logits:topk must be more than 0 and at most 1; got 0.0",
    "logits:dense,fraction=1.5": "fraction of logits:dense must be .*; got 1.5",
    "logits:sampled,fraction=nan": "fraction of logits:sampled must be .*; got nan",
    "logits:topk-small,fraction=-1": "fraction of logits:topk-small must be",
    "logits:hidden-head,fraction=2": "fraction of logits:hidden-head must be",
    "hidden:layers=1,positions=all,fraction=0": "fraction of hidden must be",
    "logits:topk,fraction=fifth": "fraction is a number; got 'fifth'",
    "hidden:layers=1,fraction=0.2": "fraction=0.2 of hidden is for rows of tokens or selected",
    "hidden:layers=1,positions=mean,fraction=0.2": "a document has a single row: leave fr",
}


@pytest.mark.parametrize("text", BAD)
def test_a_fraction_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=BAD[text]):
        parse(text)
