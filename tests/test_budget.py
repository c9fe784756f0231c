"""Proposals for a budget: they fit, the truest comes first, and their figures were measured."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.building.budget import SHOWN, load_table, make_table, propose
from kdcache.building.describe import describe_bytes
from kdcache.errors import ConfigError
from kdcache.signals import ModelSizes, parse, parse_all
from kdcache.store import Cache
from kdcache.tasks import TASKS
from kdcache_cli.main import main

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
BERT = ModelSizes(outputs=30_522, hidden=768, layers=12)


def test_the_shipped_table_is_that_of_the_committed_results() -> None:
    reports = {
        "masked-lm": json.loads((RESULTS / "fidelity.json").read_text()),
        "causal-lm": json.loads((RESULTS / "fidelity_causal.json").read_text()),
    }
    assert make_table(reports) == load_table()


def test_proposals_fit_and_the_truest_comes_first(masked_cache: Cache) -> None:
    plan = masked_cache.plan
    for budget in (250_000, 400_000, 3_000_000, 10**12):
        found = propose(plan, BERT, budget)
        assert found
        assert all(proposal.bytes <= budget for proposal in found)
        assert [p.error for p in found] == sorted(p.error for p in found)
        best = found[0]
        signals = parse_all(best.signals)
        assert describe_bytes(plan, signals, BERT)["total"] == best.bytes
        table = load_table()["masked-lm"]["logits"]
        for text, error in table.items():  # nothing truer was left out
            taken = describe_bytes(plan, parse_all([text]), BERT)["total"]
            assert taken > budget or error >= best.error
    assert propose(plan, BERT, 10**12)[0].signals == ("logits:dense,dtype=fp32",)


def test_more_bytes_are_never_worse(masked_cache: Cache) -> None:
    budgets = [200_000 * 2**i for i in range(12)]
    errors = [propose(masked_cache.plan, BERT, budget)[0].error for budget in budgets]
    assert errors == sorted(errors, reverse=True)


def test_wanted_layers_and_positions_are_kept_and_their_dtype_proposed(
    masked_cache: Cache,
) -> None:
    wanted = {"hidden": parse("hidden:layers=3-6,positions=all")}
    found = propose(masked_cache.plan, BERT, 10**11, wanted)
    assert all(p.signals[1].startswith("hidden:layers=3-6,positions=all,dtype=") for p in found)
    least = propose(masked_cache.plan, BERT, 16_000_000, wanted)[0]
    assert "dtype=int" in least.signals[1]
    fixed = {**wanted, "logits": parse("logits:topk,k=64")}
    assert {p.signals[0] for p in propose(masked_cache.plan, BERT, 10**11, fixed)} == {
        "logits:topk,k=64"
    }


def test_what_does_not_fit_names_the_least_that_would(masked_cache: Cache) -> None:
    with pytest.raises(ConfigError, match=r"nothing fits 1,000 bytes: the least is [\d,]+ bytes"):
        propose(masked_cache.plan, BERT, 1000)
    with pytest.raises(ConfigError, match="nothing was measured of the logits wanted"):
        propose(masked_cache.plan, BERT, 10**9, {"logits": parse("logits:topk,k=63")})


def test_codecs_that_a_teacher_cannot_give_are_not_proposed(masked_cache: Cache) -> None:
    small = ModelSizes(outputs=40, hidden=24, layers=2)
    wanted = {"hidden": parse("hidden:layers=1,positions=cls")}
    for proposal in propose(masked_cache.plan, small, 10**9, wanted):
        for signal in parse_all(proposal.signals).values():
            signal.check(TASKS["masked-lm"], small)


def test_classes_are_kept_whole(cache: Cache) -> None:
    found = propose(cache.plan, ModelSizes(outputs=3, hidden=32, layers=4), 10**7)
    assert [p.signals for p in found] == [("logits:dense,dtype=fp32",)]


def test_plan_prints_what_to_pass_on(
    tmp_path: Path, prose_file: Path, masked_lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokenizer", str(masked_lm), "--task", "masked-lm", "--quiet"]
    command = ["plan", str(prose_file), *options, "--out", str(tmp_path / "p")]
    assert main([*command, "--budget", "200kB", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["budget"] == 200_000
    assert told["proposals"][0]["bytes"] <= 200_000
    assert main([*command, "--budget", "200kB"]) == 0
    first = told["proposals"][0]["signals"][0]
    assert f"Take the first with: --signal {first}" in capsys.readouterr().out
    assert main([*command, "--budget", "twenty"]) == 2
    assert "--budget takes a size such as 500MB" in capsys.readouterr().err


def test_compressed_signals_are_estimated_and_say_so(
    tmp_path: Path, prose_file: Path, masked_lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokenizer", str(masked_lm), "--task", "masked-lm", "--quiet"]
    command = ["plan", str(prose_file), *options, "--out", str(tmp_path / "p")]
    assert main([*command, "--signal", "logits:topk-small,k=16"]) == 0
    shown = capsys.readouterr().out
    assert "estimate" in shown
    assert main([*command, "--signal", "logits:topk,k=16"]) == 0
    assert "estimate" not in capsys.readouterr().out


FULL = replace(BERT, heads=12, key_heads=12, head_width=64)
CODINGS = ("dtype=int8", "dtype=int8,group=64", "dtype=int4", "dtype=fp16", "dtype=fp32")
MORE = ["logits:topk-small,k=16", "soft=logits:sampled,n=50"]  # of one file of the vocabulary


@pytest.mark.parametrize("soft", [[], MORE])
def test_proposals_are_the_best_of_all_combinations(masked_cache: Cache, soft: list[str]) -> None:
    plan, known = masked_cache.plan, load_table()["masked-lm"]
    few = dict(list(known["logits"].items())[::4]) if not soft else known["logits"]
    vectors = {coding: known["hidden"][coding] for coding in CODINGS}
    layers = ["query:layers=2", "attention:layers=2"]
    choices = [[(text, few[text.removeprefix("soft=")])] for text in soft] or [list(few.items())]
    choices += [[(f"{kind},{c}", error) for c, error in vectors.items()] for kind in layers]
    every = []
    for chosen in itertools.product(*choices):
        told = describe_bytes(plan, parse_all([text for text, _ in chosen]), FULL)
        errors = [error for _, error in chosen]
        every.append((sum(errors[:-2]) + sum(errors[-2:]), told["total"]))
    table = {"masked-lm": {"logits": few, "hidden": vectors}}
    for budget in sorted(size for _, size in every)[::9]:
        best = sorted(one for one in every if one[1] <= budget)[:SHOWN]
        found = propose(plan, FULL, budget, parse_all([*soft, *layers]), table=table)
        assert [(p.error, p.bytes) for p in found] == best


def test_many_vectors_are_proposed_at_once(masked_cache: Cache) -> None:
    """Every combination would be four million."""
    texts = [f"{kind}:layers=2,positions=all" for kind in ("query", "key", "value", "hidden")]
    found = propose(masked_cache.plan, FULL, 2 * 10**7, parse_all([*texts, "embeddings"]))
    for proposal in found:
        told = describe_bytes(masked_cache.plan, parse_all(proposal.signals), FULL)
        assert told["total"] == proposal.bytes <= 2 * 10**7
    assert [p.error for p in found] == sorted(p.error for p in found)
    assert len(found) == SHOWN
